//! Hostile input to the HTTP side: JSON as it should not be, numbers at every edge, strings that break programs, requests
//! that are none. Each gets its own clear refusal, or is kept exactly; never a 5xx, never a guess; and a job submitted
//! after each is taken.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it stands"
)]

#[path = "http/world.rs"]
#[expect(
    dead_code,
    reason = "shared with the tests of HTTP, which use more of it"
)]
mod world;

use std::fmt::Write as _;
use std::time::Duration;

use hostler_engine::Span;
use hostler_server::clock::Clock;
use serde_json::{Value, json};

use world::{Answer, Client, World};

const JSON: (&str, &str) = ("content-type", "application/json");
const CONTROL: &str = r#"{"handler":"echo","payload":{"a":1}}"#;

/// A server under attack, by one connection that is made anew when it was closed.
struct Siege {
    world: World,
    client: Option<Client>,
    asked: usize,
    clock: Clock,
    slowest: Span,
    wrong: Vec<String>,
}

impl Siege {
    fn new() -> Self {
        Self {
            world: World::new(),
            client: None,
            asked: 0,
            clock: Clock::resume(None),
            slowest: Span::ZERO,
            wrong: Vec::new(),
        }
    }

    fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut client = self.client.take().unwrap_or_else(|| self.world.connect());
        let start = self.clock.now();
        let answer = client.ask(method, path, headers, body);
        self.slowest = self.slowest.max(self.clock.now().since(start));
        self.asked += 1;
        if answer.header("connection") != Some("close") {
            self.client = Some(client);
        }
        answer
    }

    /// A submission, judged, and a control job after it. The answer if it was taken.
    fn submit(&mut self, what: &str, body: &[u8], fate: Fate) -> Option<Answer> {
        let answer = self.ask("POST", "/jobs", &[JSON], body);
        let taken = answer.status == 201;
        if !taken {
            self.expect_problem(what, &answer);
        }
        let as_it_should = match fate {
            Fate::Taken => taken,
            Fate::Refused => !taken,
            Fate::Either => true,
        };
        if !as_it_should {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            self.wrong.push(format!("{what}: {} {text}", answer.status));
        }
        self.control(what);
        taken.then_some(answer)
    }

    /// A refusal is a problem with a code, and the client's fault.
    fn expect_problem(&mut self, what: &str, answer: &Answer) {
        let clear = (400..500).contains(&answer.status)
            && answer.header("content-type") == Some("application/problem+json")
            && !answer.code().is_empty();
        if !clear {
            self.wrong.push(format!("{what}: {answer:?}"));
        }
    }

    fn control(&mut self, what: &str) {
        let answer = self.ask("POST", "/jobs", &[JSON], CONTROL.as_bytes());
        self.asked -= 1;
        if answer.status != 201 {
            self.wrong
                .push(format!("after {what}, a good job: {answer:?}"));
        }
    }

    fn expect_right(self, least: usize) {
        assert!(
            self.wrong.is_empty(),
            "{} wrong:\n{}",
            self.wrong.len(),
            self.wrong.join("\n")
        );
        assert!(self.asked >= least, "only {} were asked", self.asked);
        eprintln!(
            "{} hostile requests, the slowest took {} ms",
            self.asked,
            self.slowest.millis()
        );
    }
}

#[derive(Clone, Copy)]
enum Fate {
    Taken,
    Refused,
    Either,
}

/// Documents that are JSON: as a payload they are taken.
const GOOD: &[&str] = &[
    "null",
    "true",
    "false",
    "0",
    "-0",
    "1",
    "-1",
    "123",
    "0.0",
    "0.5",
    "-0.25",
    "1e0",
    "1E0",
    "1e+0",
    "1e-0",
    "1E+22",
    "1.5e-7",
    "9007199254740991",
    "9007199254740993",
    "-9007199254740993",
    "9223372036854775808",
    "18446744073709551616",
    "0e1",
    "0.1e1",
    r#""""#,
    r#"" ""#,
    r#""\"""#,
    r#""\\""#,
    r#""\/""#,
    r#""\b\f\n\r\t""#,
    r#""\u0000""#,
    r#""\u0041""#,
    r#""\u00e9""#,
    r#""\uD834\uDD1E""#,
    r#""\ud83d\ude39""#,
    r#""\u2028\u2029""#,
    r#""\uFFFF""#,
    "\"\u{7f}\"",
    "\"\u{85}\"",
    "\"\u{feff}\"",
    "\"𝄞\"",
    "[]",
    "[ ]",
    "[null]",
    "[1,\n2]",
    "[[]]",
    r#"[""]"#,
    "[1,null,true,\"a\",{}]",
    "[[[[[[[[[[]]]]]]]]]]",
    "{}",
    "{ }",
    r#"{"":0}"#,
    r#"{"a":[]}"#,
    r#"{"a":{"b":{"c":{}}}}"#,
    r#"{"a":1,"b":2}"#,
    "{\n}",
    "\t[\r\n]\n ",
    r#"{"\u0000":1}"#,
    r#"{"a\"b":1}"#,
];

/// Documents that are none.
const BAD: &[&str] = &[
    "",
    " ",
    "nul",
    "nulll",
    "Null",
    "NULL",
    "True",
    "TRUE",
    "tru",
    "undefined",
    "NaN",
    "-NaN",
    "Infinity",
    "-Infinity",
    "inf",
    "nan",
    "+1",
    "++1",
    "--1",
    "-",
    "+",
    ".",
    ".5",
    "-.5",
    "5.",
    "-5.",
    "0.",
    "00",
    "01",
    "-01",
    "1.e1",
    "1e",
    "1e+",
    "1E-",
    "1e1.5",
    "0x1",
    "0b1",
    "0o7",
    "1_000",
    "1,000",
    "1 000",
    "1a",
    "1e1e1",
    "0.0.0",
    "-0.-0",
    "１",
    "1\u{a0}",
    "\u{feff}1",
    "'a'",
    "\"",
    "\"a",
    "a\"",
    "a",
    "\"\\\"",
    "\"\\a\"",
    "\"\\x41\"",
    "\"\\u\"",
    "\"\\u1\"",
    "\"\\u12\"",
    "\"\\u123\"",
    "\"\\u123g\"",
    "\"\\U0041\"",
    "\"\\'\"",
    "\"\\0\"",
    "\"\\ \"",
    "\"\\\u{e9}\"",
    "\"\n\"",
    "\"\r\"",
    "\"\t\"",
    "\"\u{0}\"",
    "\"\u{1}\"",
    "\"\u{1f}\"",
    "`a`",
    "“a”",
    "[",
    "]",
    "[[",
    "[1",
    "[1,",
    "[,",
    "[,1]",
    "[1,]",
    "[1,,2]",
    "[1 2]",
    "[1;2]",
    "[1:2]",
    "[1]]",
    "[1]x",
    "[1}",
    "[\"a\"",
    "[\"a\" \"b\"]",
    "[a]",
    "[*]",
    "[<null>]",
    "[\u{0}]",
    "[1]\u{0}",
    "[-]",
    "[1.]",
    "(1)",
    "<1>",
    "[1,\n2",
    "[1]#",
    "[1]//",
    "[1]/**/",
    "/**/[1]",
    "# 1",
    "{",
    "}",
    "{{",
    "{}}",
    "{,}",
    "{a}",
    "{a:1}",
    "{'a':1}",
    "{\"a\"}",
    "{\"a\":}",
    "{\"a\":1",
    "{\"a\":1,",
    "{\"a\":1,}",
    "{\"a\":1,,\"b\":2}",
    "{:1}",
    "{1:1}",
    "{null:1}",
    "{\"a\" 1}",
    "{\"a\"=1}",
    "{\"a\"::1}",
    "{\"a\":1 \"b\":2}",
    "{\"a\":1;\"b\":2}",
    "{\"a\":\"b",
    "{\"a\":1]",
    "{\"a\":/**/1}",
    "{\"a\":1}#",
    "{\"a\":1}{",
    "{\"a\":1}}",
    "{\"a\":1}1",
    "{\"a\":'b'}",
    "{[]:1}",
    "{\"a\":1 2}",
    "1 2",
    "1,2",
    "[]{}",
    "{}[]",
];

#[test]
fn json_is_taken_and_what_is_none_is_refused() {
    let mut siege = Siege::new();
    for good in GOOD {
        let body = format!("{{\"handler\":\"echo\",\"payload\":{good}}}");
        siege.submit(&format!("payload {good:?}"), body.as_bytes(), Fate::Taken);
    }
    for bad in BAD {
        let body = format!("{{\"handler\":\"echo\",\"payload\":{bad}}}");
        siege.submit(&format!("payload {bad:?}"), body.as_bytes(), Fate::Refused);
        // As the whole document too.
        siege.submit(&format!("document {bad:?}"), bad.as_bytes(), Fate::Refused);
    }
    for bytes in [
        &b"\xff"[..],
        b"\"\xff\"",
        b"{\"handler\":\"\xc3\x28\"}",
        b"{\"handler\":\"\xed\xa0\x80\"}",
        b"{\"handler\":\"\xf4\x90\x80\x80\"}",
        b"{\"handler\":\"\xc0\xaf\"}",
        b"\xef\xbb\xbf{\"handler\":\"echo\"}",
        b"\xff\xfe{\0}\0",
        b"\0{\"handler\":\"echo\"}",
        b"{\"handler\":\"echo\"}\0",
        b"{\"handler\":\"\\ud800\"}",
        b"{\"handler\":\"\\udc00\\ud800\"}",
        b"{\"handler\":\"\\ud800\\u0041\"}",
    ] {
        siege.submit(&format!("{bytes:?}"), bytes, Fate::Refused);
    }
    siege.expect_right(350);
}

#[test]
fn a_key_that_comes_twice_is_refused_wherever_it_means_something() {
    let mut siege = Siege::new();
    for body in [
        r#"{"command":["a"],"command":["b"]}"#,
        r#"{"command":["a"],"queue":"a","queue":"a"}"#,
        r#"{"command":["a"],"priority":1,"priority":2}"#,
        r#"{"command":["a"],"\u0071ueue":"a","queue":"b"}"#,
        r#"{"command":["a"],"env":{"A":"1","A":"2"}}"#,
        r#"{"command":["a"],"env":{"A":"1"},"env":{"A":"2"}}"#,
        r#"{"command":["a"],"labels":{"A":"1","\u0041":"2"}}"#,
        r#"{"command":["a"],"retry":{"max_attempts":1,"max_attempts":2}}"#,
        r#"{"command":["a"],"logs":{"mode":"keep","mode":"none"}}"#,
        r#"{"handler":"a","payload":1,"payload":2}"#,
        r#"[{"handler":"a"},{"handler":"a","handler":"b"}]"#,
    ] {
        siege.submit(body, body.as_bytes(), Fate::Refused);
    }
    siege.expect_right(11);
}

#[test]
fn numbers_at_every_edge_are_kept_exactly_or_refused() {
    let mut siege = Siege::new();
    let edges = [
        "-1",
        "-0",
        "0",
        "0.0",
        "1",
        "1.0",
        "1.5",
        "1e0",
        "1e3",
        "1e400",
        "-1e400",
        "1e-400",
        "126",
        "127",
        "128",
        "-128",
        "-129",
        "254",
        "255",
        "256",
        "65534",
        "65535",
        "65536",
        "2147483647",
        "2147483648",
        "-2147483648",
        "-2147483649",
        "4294967295",
        "4294967296",
        "9007199254740991",
        "9007199254740992",
        "9007199254740993",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "-9223372036854775809",
        "18446744073709551615",
        "18446744073709551616",
        "340282366920938463463374607431768211456",
        "0.30000000000000004",
        "1e308",
        "1e309",
        "5e-324",
        "\"1\"",
        "\"NaN\"",
        "null",
        "true",
        "[1]",
        "{}",
    ];
    let fields = [
        ("priority", r#""priority":@"#),
        ("timeout_ms", r#""timeout_ms":@"#),
        ("grace_ms", r#""grace_ms":@"#),
        ("stall_ms", r#""stall_ms":@"#),
        ("delay_ms", r#""delay_ms":@"#),
        ("expires_ms", r#""expires_ms":@"#),
        ("max_losses", r#""max_losses":@"#),
        ("retry/max_attempts", r#""retry":{"max_attempts":@}"#),
        ("retry/backoff_ms", r#""retry":{"backoff_ms":@}"#),
        ("retry/factor", r#""retry":{"factor":@}"#),
        ("retry/later", r#""retry":{"later":[@]}"#),
        ("logs/limit_bytes", r#""logs":{"limit_bytes":@}"#),
    ];
    for (pointer, field) in fields {
        for edge in edges {
            let body = format!("{{\"handler\":\"echo\",{}}}", field.replace('@', edge));
            let Some(answer) = siege.submit(&body, body.as_bytes(), Fate::Either) else {
                continue;
            };
            let Ok(asked) = serde_json::from_str::<Value>(edge) else {
                siege.wrong.push(format!("{body} was taken"));
                continue;
            };
            // What the record shows of it is what was asked; a default may stand for nothing.
            if let Some(kept) = answer.json().pointer(&format!("/{pointer}"))
                && !asked.is_null()
                && kept.as_f64() != asked.as_f64().or(asked[0].as_f64())
                && kept[0].as_f64() != asked[0].as_f64()
            {
                siege.wrong.push(format!("{body} became {kept}"));
            }
        }
    }
    for id in [
        "0",
        "-0",
        "-1",
        "+1",
        "01",
        "1.0",
        "1e0",
        "0x1",
        "１",
        "9007199254740992",
        "9007199254740993",
        "18446744073709551616",
        "340282366920938463463374607431768211456",
        "1%00",
        "1%0a",
        "1%20",
        "%31",
        "NaN",
        "null",
        "undefined",
        "1;2",
        "1,2",
        "1'--",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e",
        "..",
        ".",
        "%",
        "%zz",
        "*",
        "~",
        "$ID",
        "${1}",
        "{{7*7}}",
        "1%27%20OR%201=1",
    ] {
        for (method, path) in [
            ("GET", ""),
            ("DELETE", ""),
            ("GET", "/logs"),
            ("POST", "/retry"),
        ] {
            let target = format!("/jobs/{id}{path}");
            let answer = siege.ask(method, &target, &[], b"");
            siege.expect_problem(&format!("{method} {target}"), &answer);
        }
    }
    siege.control("ids");
    siege.expect_right(700);
}

/// Strings that have broken programs.
fn naughty() -> Vec<String> {
    let mut strings: Vec<String> = [
        "undefined",
        "null",
        "NULL",
        "nil",
        "NaN",
        "true",
        "0",
        "-0",
        "1e400",
        "[object Object]",
        "\\",
        "\\\\",
        "\"",
        "'",
        "`",
        "''''",
        "\"\"\"\"",
        "a b",
        " a",
        "a ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "a\nb",
        "a\rb",
        "\u{0}",
        "a\u{0}b",
        "\u{1}",
        "\u{1b}[31mred\u{1b}[0m",
        "\u{1b}]0;title\u{7}",
        "\u{1b}[2J",
        "\u{7}",
        "\u{8}",
        "\u{7f}",
        "\u{85}",
        "\u{9b}31m",
        "\u{a0}",
        "\u{200b}",
        "\u{200e}\u{200f}",
        "\u{202e}txt.exe",
        "\u{2028}",
        "\u{2066}a\u{2069}",
        "\u{feff}",
        "\u{fffd}",
        "\u{fffe}",
        "\u{ffff}",
        "\u{10ffff}",
        "é",
        "e\u{301}",
        "Ω≈ç√∫",
        "田中さん",
        "مرحبا",
        "👨‍👩‍👧",
        "🇩🇪",
        "ﷺ",
        "Z̮̞̠͙͔ͅa̘l͓g̯o",
        "ß",
        "İ",
        "ﬀ",
        "$HOME",
        "${HOME}",
        "$(id)",
        "`id`",
        "; id",
        "| id",
        "&& id",
        "> /tmp/x",
        "%s%n%x",
        "%00",
        "%0a",
        "../../etc/passwd",
        "/etc/passwd",
        "..\\..\\x",
        "C:\\x",
        "file:///etc/passwd",
        "<script>alert(1)</script>",
        "<!--",
        "]]>",
        "&lt;",
        "{{7*7}}",
        "' OR 1=1 --",
        "'; DROP TABLE jobs;--",
        "a%",
        "_",
        "*",
        "?",
        "#",
        "--help",
        "-rf",
        "-",
        "--",
        "CON",
        "http://a/?b=c&d",
        "a=b",
        "=",
        "a=",
        "=b",
        "a,b",
        "a;b",
        "a:b",
        "a/b",
        "a.b",
        "a{b}",
        "{b=\"c\"}",
        "le=\"0.5\"",
        "# HELP",
    ]
    .map(str::to_owned)
    .to_vec();
    strings.push(String::new());
    strings.extend([127, 128, 129, 4_096, 4_097].map(|length| "x".repeat(length)));
    strings.push("é".repeat(64));
    strings.push("é".repeat(65));
    strings
}

#[test]
fn strings_are_kept_to_the_byte_or_refused_with_their_place() {
    let mut siege = Siege::new();
    type Job = fn(&str) -> Value;
    let fields: [(&str, Job, &str); 11] = [
        ("name", |s| json!({"command": ["a"], "name": s}), "/name"),
        ("queue", |s| json!({"command": ["a"], "queue": s}), "/queue"),
        (
            "label key",
            |s| json!({"command": ["a"], "labels": {s: "v"}}),
            "",
        ),
        (
            "label value",
            |s| json!({"command": ["a"], "labels": {"k": s}}),
            "/labels/k",
        ),
        (
            "env name",
            |s| json!({"command": ["a"], "env": {s: "v"}}),
            "",
        ),
        (
            "env value",
            |s| json!({"command": ["a"], "env": {"K": s}}),
            "",
        ),
        ("cwd", |s| json!({"command": ["a"], "cwd": s}), "/cwd"),
        ("argument", |s| json!({"command": ["a", s]}), "/command/1"),
        ("program", |s| json!({"command": [s]}), "/command/0"),
        ("stdin", |s| json!({"command": ["a"], "stdin": s}), ""),
        ("handler", |s| json!({"handler": s}), "/handler"),
    ];
    for text in naughty() {
        for (field, job, pointer) in fields {
            let what = format!("{field} {text:?}");
            let job = job(&text);
            let Some(answer) = siege.submit(&what, job.to_string().as_bytes(), Fate::Either) else {
                continue;
            };
            let id = answer.json()["id"].as_u64().unwrap();
            let view = siege.ask("GET", &format!("/jobs/{id}"), &[], b"");
            if view.status != 200 {
                siege.wrong.push(format!("{what}: its view is {view:?}"));
                continue;
            }
            let view = view.json();
            let kept = match field {
                "label key" => view["labels"].get(&text).is_some(),
                // Only names are told.
                "env name" => view["env"]
                    .as_array()
                    .is_some_and(|env| env.contains(&json!(text))),
                "env value" | "stdin" => true,
                _ => view.pointer(pointer) == Some(&json!(text)),
            };
            if !kept {
                siege.wrong.push(format!("{what}: became {view}"));
            }
            let may_not = match field {
                "env name" => text.is_empty() || text.contains(['\0', '=']),
                "queue" | "label key" | "handler" => text.is_empty(),
                "name" | "label value" => text.len() > 128,
                "env value" | "argument" | "program" | "cwd" => text.contains('\0'),
                _ => false,
            };
            if may_not {
                siege.wrong.push(format!("{what}: was taken"));
            }
            if siege.world.fake().records.len() > 500 {
                siege.world.fake().records.clear();
            }
        }
        let mut encoded = String::new();
        for byte in text.bytes().take(2_000) {
            write!(encoded, "%{byte:02X}").unwrap();
        }
        for target in [
            format!("/jobs?queue={encoded}"),
            format!("/jobs?name={encoded}"),
            format!("/jobs?q={encoded}"),
            format!("/jobs?cursor={encoded}"),
            format!("/jobs?since={encoded}"),
            format!("/jobs/1?{encoded}=1"),
            format!("/queues/{encoded}"),
            format!("/{encoded}"),
        ] {
            let answer = siege.ask("GET", &target, &[], b"");
            if answer.status != 200 {
                siege.expect_problem(&target, &answer);
            }
        }
    }
    siege.expect_right(1_000);
}

#[test]
fn depth_and_width_are_refused_or_taken_but_never_hurt() {
    let mut siege = Siege::new();
    for depth in [10, 127, 128, 129, 10_000, 1_000_000] {
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
            let inner = if open == "[" { "" } else { "1" };
            let deep = format!("{}{inner}{}", open.repeat(depth), close.repeat(depth));
            let payload = format!("{{\"handler\":\"echo\",\"payload\":{deep}}}");
            let what = format!("{depth} × {open}");
            if let Some(answer) = siege.submit(&what, payload.as_bytes(), Fate::Either) {
                let id = answer.json_id();
                let view = siege.ask("GET", &format!("/jobs/{id}"), &[], b"");
                if view.status != 200 {
                    siege
                        .wrong
                        .push(format!("the view of {what}: {}", view.status));
                }
            }
            siege.submit(&what, deep.as_bytes(), Fate::Refused);
            siege.submit(&what, open.repeat(depth).as_bytes(), Fate::Refused);
        }
    }
    let wide = |count: usize, of: &dyn Fn(usize) -> String| {
        (0..count).map(of).collect::<Vec<_>>().join(",")
    };
    for (what, body) in [
        (
            "labels",
            format!(
                "{{\"handler\":\"a\",\"labels\":{{{}}}}}",
                wide(10_000, &|n| format!("\"l{n}\":\"\""))
            ),
        ),
        (
            "unknown fields",
            format!(
                "{{\"handler\":\"a\",{}}}",
                wide(100_000, &|n| format!("\"f{n}\":1"))
            ),
        ),
        (
            "rules",
            format!(
                "{{\"handler\":\"a\",\"retry\":{{\"on\":[{}]}}}}",
                wide(1_000, &|n| n.to_string())
            ),
        ),
        (
            "arguments",
            format!(
                "{{\"command\":[{}]}}",
                wide(131_073, &|_| "\"\"".to_owned())
            ),
        ),
        (
            "variables",
            format!(
                "{{\"command\":[\"a\"],\"env\":{{{}}}}}",
                wide(131_073, &|n| format!("\"e{n}\":\"\""))
            ),
        ),
    ] {
        siege.submit(what, body.as_bytes(), Fate::Refused);
    }
    siege.expect_right(36);
}

impl Answer {
    /// The id, read without a parser that may not go as deep.
    fn json_id(&self) -> u64 {
        let text = self.text();
        let digits = text.split_once("\"id\":").unwrap().1;
        digits
            .split(|c: char| !c.is_ascii_digit())
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }
}

#[test]
fn requests_that_are_none_get_one_answer_and_harm_nobody() {
    let w = World::with(|config| config.limits.http_header_timeout = Duration::from_millis(500));
    let auth = format!("host: localhost\r\nauthorization: Bearer {}\r\n", w.token);
    let json = "content-type: application/json\r\n";
    let mut requests: Vec<String> = Vec::new();
    for line in [
        "",
        " ",
        "G",
        "GET",
        "GET ",
        "GET /",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / HTTP/0.9",
        "GET / http/1.1",
        "GET / HTTP/1.1x",
        "GET\t/\tHTTP/1.1",
        "G\0T / HTTP/1.1",
        "GÉT / HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET /\u{7f} HTTP/1.1",
        "GET /é HTTP/1.1",
        "GET jobs HTTP/1.1",
        "GET * HTTP/1.1",
        "GET //// HTTP/1.1",
        "GET /?a=b#c HTTP/1.1",
        "GET http:/// HTTP/1.1",
        "GET ://x HTTP/1.1",
        "CONNECT / HTTP/1.1",
        "PRI * HTTP/2.0",
        "OPTIONS * HTTP/1.1",
        "TRACE / HTTP/1.1",
        "get /jobs HTTP/1.1",
        "BREW /pot HTTP/1.1",
        "GET /jobs/../../etc/passwd HTTP/1.1",
        "GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1",
        "GET /jobs%00 HTTP/1.1",
        "GET /jobs\\..\\x HTTP/1.1",
        "<html>",
        "SSH-2.0-x",
        "EHLO x",
        "*1\r\n$4\r\nPING",
        "\u{16}\u{3}\u{1}",
    ] {
        requests.push(format!("{line}\r\n{auth}\r\n"));
    }
    for header in [
        ": x",
        " x: y",
        "x : y",
        "x",
        "x\0: y",
        "x: \0",
        "x: a\rb",
        "x: a\nb",
        "é: y",
        "(x): y",
        "x: \u{1}",
        "content-length",
        "host: a",
        "host: localhost, evil",
        "host: localhost@evil",
        "host: evil#localhost",
        "host: [::1",
        "host: ",
        "authorization: x",
        "authorization: Bearer",
        "authorization: Bearer a b",
        "authorization: Basic YTpi",
        "expect: 200-ok",
        "upgrade: websocket\r\nconnection: upgrade",
        "connection: close, x",
        "te: trailers, deflate",
        "range: bytes=5-1",
        "if-none-match: \"",
        "content-type: application/json; charset=\"",
        "content-encoding: gzip",
        "cookie: a=b",
        "x-request-id: \u{7}",
        "x-forwarded-for: 127.0.0.1",
        "x-http-method-override: DELETE",
        "forwarded: for=\"_x\"",
        "sec-fetch-site: cross-site",
        "origin: null",
        "origin: http://evil",
        "referer: http://evil",
    ] {
        requests.push(format!("GET /jobs HTTP/1.1\r\n{header}\r\n{auth}\r\n"));
        requests.push(format!(
            "POST /jobs HTTP/1.1\r\n{auth}{header}\r\n{json}content-length: 2\r\n\r\n{{}}"
        ));
    }
    for framing in [
        "content-length: 5, 5",
        "content-length: 5\r\ncontent-length: 5",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: +5",
        "content-length: -0",
        "content-length: 0x5",
        "content-length: 5 5",
        "content-length: 5;",
        "content-length: ",
        "content-length: ５",
        "content-length: 18446744073709551615",
        "content-length: 18446744073709551616",
        "content-length : 5",
        "content_length: 5",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: identity",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, gzip",
        "transfer-encoding: xchunked",
        "transfer-encoding: \u{b}chunked",
        "transfer-encoding:\tchunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding : chunked",
        "transfer_encoding: chunked",
        "Transfer-Encoding: Chunked",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked;q=1",
        "trailer: content-length\r\ntransfer-encoding: chunked",
    ] {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "hello",
            "GET /jobs HTTP/1.1\r\n\r\n",
        ] {
            requests.push(format!(
                "POST /jobs HTTP/1.1\r\n{auth}{json}{framing}\r\n\r\n{body}"
            ));
        }
    }
    for chunks in [
        "\r\n",
        "x\r\n",
        "-1\r\n",
        "+1\r\na\r\n0\r\n\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "1 \r\na\r\n0\r\n\r\n",
        " 1\r\na\r\n0\r\n\r\n",
        "1\na\n0\n\n",
        "1\r\nab\r\n0\r\n\r\n",
        "2\r\na\r\n0\r\n\r\n",
        "ffffffffffffffff\r\n",
        "10000000000000000\r\n",
        "00000000000000000001\r\na\r\n0\r\n\r\n",
        "1;a=b\r\na\r\n0\r\n\r\n",
        "1;\"\r\na\r\n0\r\n\r\n",
        "1\r\na0\r\n\r\n",
        "0\r\nx: y\r\n\r\n",
        "0\r\ncontent-length: 5\r\n\r\n",
        "0\r\n: x\r\n\r\n",
        "0\r\n\0\r\n\r\n",
        "0;\r\n\r\n",
        "000\r\n\r\n",
        "1\r\r\na\r\n0\r\n\r\n",
    ] {
        requests.push(format!(
            "POST /jobs HTTP/1.1\r\n{auth}{json}transfer-encoding: chunked\r\n\r\n{chunks}"
        ));
    }
    requests.push(format!(
        "POST /jobs HTTP/1.1\r\n{auth}{json}transfer-encoding: chunked\r\n\r\n1;{}\r\na\r\n",
        "x".repeat(100_000)
    ));
    requests.push(format!(
        "POST /jobs HTTP/1.1\r\n{auth}{json}transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n",
        "1\r\n \r\n".repeat(100_000)
    ));
    requests.push(format!(
        "POST /jobs HTTP/1.1\r\n{auth}{json}transfer-encoding: chunked\r\n\r\n0\r\n{}\r\n",
        "t: x\r\n".repeat(10_000)
    ));
    let clock = Clock::resume(None);
    let (mut wrong, mut slowest) = (Vec::new(), Span::ZERO);
    for request in &requests {
        let shown: String = request.replace(&w.token, "…").chars().take(160).collect();
        let mut client = w.connect();
        let start = clock.now();
        client.send(request.as_bytes());
        // It says that it has no more to say: whoever waits for more has an end to see.
        client.stream.shutdown(std::net::Shutdown::Write).ok();
        let mut statuses = Vec::new();
        while let Some(answer) = client.try_answer() {
            statuses.push(answer.status);
            let plain = answer.status < 400
                || answer.header("content-type") == Some("application/problem+json");
            if answer.status >= 500 || !plain {
                wrong.push(format!("{shown}: {answer:?}"));
            }
        }
        slowest = slowest.max(clock.now().since(start));
        // A length said twice alike is one, and a header nobody knows is none: what follows such a request is the
        // next, which is no request.
        let clear = [
            "\r\ncontent-length: 5\r\ncontent-length: 5\r\n",
            "_length: ",
            "_encoding: ",
        ];
        let next = clear.iter().any(|clear| request.contains(clear));
        if statuses.len() > 1 && (!next || statuses[1..] != [400]) {
            wrong.push(format!("{shown}: {statuses:?}, more than one answer"));
        }
        if w.post(CONTROL).status != 201 {
            wrong.push(format!("after {shown}: a good job was refused"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(requests.len() >= 250, "only {}", requests.len());
    eprintln!(
        "{} requests, the slowest took {} ms",
        requests.len(),
        slowest.millis()
    );
}
