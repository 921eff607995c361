//! Query strings, read as strictly as bodies: unknown, repeated and malformed parameters are errors.

use std::borrow::Cow;
use std::str::FromStr;
use std::time::Duration;

use hostler_wire::api::{Timestamp, nearest};

use crate::http::problem::{Code, Refusal};

/// The parameters of one request.
#[derive(Debug)]
pub(super) struct Params<'a> {
    pairs: Vec<(&'static str, Cow<'a, str>)>,
}

impl<'a> Params<'a> {
    /// Reads a query of which these names are known.
    pub(super) fn parse(
        query: Option<&'a str>,
        known: &[&'static str],
    ) -> Result<Self, Box<Refusal>> {
        let mut pairs: Vec<(&'static str, Cow<'a, str>)> = Vec::new();
        for part in query
            .unwrap_or_default()
            .split('&')
            .filter(|part| !part.is_empty())
        {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            let Some(name) = known.iter().find(|known| name == **known) else {
                return Err(unknown(&name, known));
            };
            if pairs.iter().any(|(other, _)| other == name) {
                return Err(wrong(name, "given twice"));
            }
            pairs.push((name, value));
        }
        Ok(Self { pairs })
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(other, _)| *other == name)
            .map(|(_, value)| &**value)
    }

    /// 0 or 1, absent or false or true; a bare name is true.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Box<Refusal>> {
        match self.text(name) {
            None => Ok(None),
            Some("0" | "false") => Ok(Some(false)),
            Some("1" | "true" | "") => Ok(Some(true)),
            Some(_) => Err(wrong(name, "must be 0 or 1")),
        }
    }

    pub(super) fn number<T: FromStr>(
        &self,
        name: &str,
        what: &str,
    ) -> Result<Option<T>, Box<Refusal>> {
        self.text(name)
            .map(|text| {
                text.parse()
                    .map_err(|_not| wrong(name, &format!("must be {what}")))
            })
            .transpose()
    }

    /// `30s`, `1m30s`, `500ms`.
    pub(super) fn duration(&self, name: &str) -> Result<Option<Duration>, Box<Refusal>> {
        self.text(name)
            .map(|text| {
                duration(text)
                    .ok_or_else(|| wrong(name, "must be a duration with its unit, such as 30s"))
            })
            .transpose()
    }

    /// A time, or so long before now.
    pub(super) fn moment(
        &self,
        name: &str,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, Box<Refusal>> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        if let Some(ago) = duration(text) {
            let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
            return Ok(Some(Timestamp::from_millis(
                now.millis().saturating_sub(ago),
            )));
        }
        text.parse().map(Some).map_err(|error| {
            wrong(
                name,
                &format!("must be a time or a duration such as 10m: {error}"),
            )
        })
    }
}

/// The error for a parameter's value.
pub(super) fn wrong(name: &str, detail: &str) -> Box<Refusal> {
    Refusal::field(Code::BadParameter, format!("?{name}"), detail)
}

fn unknown(name: &str, known: &[&'static str]) -> Box<Refusal> {
    let shown: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
    let detail = match (nearest(name, known), known) {
        (Some(near), _) => format!("unknown parameter, did you mean `{near}`?"),
        (None, []) => "unknown parameter; this endpoint takes none".into(),
        (None, known) => format!("unknown parameter; known are {}", known.join(", ")),
    };
    Refusal::field(Code::UnknownParameter, format!("?{shown}"), detail)
}

/// A duration with its unit; a day has 24 hours. Not negative.
fn duration(text: &str) -> Option<Duration> {
    if !text.ends_with(|c: char| c.is_ascii_alphabetic()) || text.len() > 64 {
        return None;
    }
    let span: jiff::Span = text.parse().ok()?;
    let span = span
        .to_duration(jiff::SpanRelativeTo::days_are_24_hours())
        .ok()?;
    Duration::try_from(span).ok()
}

/// Undoes percent-encoding; a plus is a space.
fn decode(text: &str) -> Result<Cow<'_, str>, Box<Refusal>> {
    if !text.contains(['%', '+']) {
        return Ok(Cow::Borrowed(text));
    }
    let broken = || {
        Refusal::new(
            Code::BadParameter,
            "the query is not percent-encoded UTF-8 text",
        )
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
                let (high, low) = (digit(rest.next()), digit(rest.next()));
                let (Some(high), Some(low)) = (high, low) else {
                    return Err(broken());
                };
                u8::try_from(high * 16 + low).map_err(|_above| broken())?
            }
            other => other,
        });
    }
    String::from_utf8(bytes)
        .map(Cow::Owned)
        .map_err(|_not_text| broken())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["state", "limit", "wait", "since", "live"];

    fn read(query: &str) -> Result<Params<'_>, Box<Refusal>> {
        Params::parse(Some(query), KNOWN)
    }

    #[test]
    fn parameters_are_decoded_and_typed() {
        let params = read("state=a%2Cb+c&limit=7&wait=1m30s&live").unwrap();
        assert_eq!(params.text("state"), Some("a,b c"));
        assert_eq!(params.number("limit", "a number").unwrap(), Some(7_u32));
        assert_eq!(
            params.duration("wait").unwrap(),
            Some(Duration::from_secs(90))
        );
        assert_eq!(params.flag("live").unwrap(), Some(true));
        assert_eq!(params.text("since"), None);
    }

    #[test]
    fn times_are_absolute_or_so_long_ago() {
        let now = Timestamp::from_millis(1_000_000);
        let moment = |query| read(query).unwrap().moment("since", now);
        assert_eq!(
            moment("since=10s").unwrap(),
            Some(Timestamp::from_millis(990_000))
        );
        assert_eq!(moment("since=2d").unwrap(), Some(Timestamp::from_millis(0)));
        let at = moment("since=1970-01-01T00:00:05Z").unwrap();
        assert_eq!(at, Some(Timestamp::from_millis(5_000)));
        assert!(moment("since=yesterday").is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (query, code, pointer) in [
            ("stat=a", Code::UnknownParameter, "?stat"),
            ("limit=1&limit=2", Code::BadParameter, "?limit"),
        ] {
            let refusal = read(query).unwrap_err();
            assert_eq!(
                (refusal.code, refusal.errors[0].pointer.as_str()),
                (code, pointer)
            );
        }
        assert!(read("stat=a").unwrap_err().detail.contains("`state`"));
        assert!(read("state=%zz").is_err());
        assert!(read("state=%ff").is_err());
        let params = read("limit=x&wait=30&live=2").unwrap();
        assert!(params.number::<u32>("limit", "a number").is_err());
        assert!(params.duration("wait").is_err());
        assert!(params.flag("live").is_err());
    }
}
