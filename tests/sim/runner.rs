//! Runs seeds, says how it went, and explains the one that failed.

use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Once;

use hostler_server::clock::Readings;
use rustix::time::ClockId;

use crate::faults::Fault;
use crate::options::Options;
use crate::print;
use crate::trace::{Trace, Wanted};
use crate::world::{Tally, World};

thread_local! {
    /// A run is under way on this thread: its panics are findings.
    static RUNS: Cell<bool> = const { Cell::new(false) };
    /// The words of the last panic on this thread.
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
    /// This thread's clocks: one set, used by one run after another.
    static READINGS: &'static Readings = Box::leak(Box::default());
}

/// A seed that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) why: String,
    pub(crate) trace: Vec<String>,
    pub(crate) events: u64,
}

/// Runs one seed.
pub(crate) fn run(options: &Options, wanted: Wanted) -> Result<Tally, Box<Failure>> {
    quiet();
    let readings = READINGS.with(|readings| *readings);
    let mut world = World::new(options.clone(), readings, Trace::new(wanted));
    RUNS.set(true);
    let done = panic::catch_unwind(AssertUnwindSafe(|| world.run()));
    RUNS.set(false);
    match done {
        Ok(()) => Ok(world.tally.clone()),
        Err(_) => Err(Box::new(Failure {
            why: LAST_PANIC.with(|words| words.borrow().clone()),
            trace: world.trace.lines().map(str::to_owned).collect(),
            events: world.tally.events,
        })),
    }
}

/// Says everything about a seed that fails.
pub(crate) fn explain(options: &Options) -> String {
    let Err(failure) = run(options, Wanted::Last) else {
        return format!("seed {} does not fail", options.seed);
    };
    let seed = options.seed;
    format!(
        "{options}\n{}\n\nseed {seed} failed after {} events: {}\nreplay: cargo run --release -p hostler-tests --bin sim \
         -- --seed {seed} --trace\n",
        failure.trace.join("\n"),
        failure.events,
        failure.why
    )
}

/// The words of a finding are kept, not printed.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            LAST_PANIC.with(|words| *words.borrow_mut() = info.to_string());
            if !RUNS.get() {
                before(info);
            }
        }));
    });
}

#[derive(Default)]
struct Args {
    seed: Option<u64>,
    count: Option<u64>,
    seconds: Option<u64>,
    trace: bool,
    keep_going: bool,
    check_every: Option<u64>,
    /// A deliberate bug, in a build that has them.
    bug: Option<String>,
}

pub(crate) fn main(args: impl Iterator<Item = String>) -> ExitCode {
    match parse(args) {
        Ok(args) => go(&args),
        Err(why) => {
            print(&format!(
                "{why}\nusage: sim [--seconds N] [--seed N] [--count N] [--trace] [--keep-going] [--check-every N] [--bug NAME]"
            ));
            ExitCode::from(2)
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut parsed = Args::default();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--trace" => {
                parsed.trace = true;
                continue;
            }
            "--keep-going" => {
                parsed.keep_going = true;
                continue;
            }
            "--bug" => {
                parsed.bug = Some(args.next().ok_or("--bug needs its name")?);
                continue;
            }
            _ => {}
        }
        let place = match arg.as_str() {
            "--seed" => &mut parsed.seed,
            "--count" => &mut parsed.count,
            "--seconds" => &mut parsed.seconds,
            "--check-every" => &mut parsed.check_every,
            _ => return Err(format!("{arg} is not an option")),
        };
        let value = args.next().ok_or(format!("{arg} needs a number"))?;
        *place = Some(value.parse().or(Err(format!("{value} is no number")))?);
    }
    Ok(parsed)
}

fn go(args: &Args) -> ExitCode {
    #[cfg(feature = "mutations")]
    if let Some(bug) = &args.bug {
        hostler_wire::mutation::turn_on(Box::leak(bug.clone().into_boxed_str()));
    }
    #[cfg(not(feature = "mutations"))]
    if args.bug.is_some() {
        print("this build has no deliberate bugs: it takes --features mutations");
        return ExitCode::from(2);
    }
    let options = |seed| {
        let mut options = Options::of(seed);
        options.check_every = args.check_every.unwrap_or(options.check_every);
        options.parts_check = args.bug.is_none();
        options
    };
    if args.trace {
        let options = options(args.seed.unwrap_or(1));
        print(&options.to_string());
        return match run(&options, Wanted::All) {
            Ok(tally) => {
                print(&format!("{tally:?}"));
                ExitCode::SUCCESS
            }
            Err(failure) => {
                print(&failure.why);
                ExitCode::FAILURE
            }
        };
    }
    let first = args.seed.unwrap_or_else(fresh);
    let started = seconds(ClockId::Monotonic);
    let count = match (args.count, args.seconds, args.seed) {
        (Some(count), _, _) => count,
        (None, None, Some(_)) => 1,
        (None, _, _) => u64::MAX,
    };
    let seconds_max = match args.seconds {
        #[expect(clippy::cast_precision_loss, reason = "a few seconds")]
        Some(seconds) => seconds as f64,
        None if count == u64::MAX => 60.0,
        None => f64::INFINITY,
    };
    let mut sum = Sum::default();
    for seed in (first..).take(usize::try_from(count).unwrap_or(usize::MAX)) {
        if seconds(ClockId::Monotonic) - started >= seconds_max {
            break;
        }
        match run(&options(seed), Wanted::Nothing) {
            Ok(tally) => sum.add(&tally),
            Err(failure) if args.keep_going => {
                print(&format!("seed {seed}: {}", failure.why));
            }
            Err(_) => {
                print(&explain(&options(seed)));
                print(&sum.report(seconds(ClockId::ProcessCPUTime)));
                return ExitCode::FAILURE;
            }
        }
    }
    print(&format!("seeds from {first}"));
    print(&sum.report(seconds(ClockId::ProcessCPUTime)));
    ExitCode::SUCCESS
}

/// All runs together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sum {
    pub(crate) seeds: u64,
    pub(crate) tally: Tally,
}

impl Sum {
    pub(crate) fn add(&mut self, tally: &Tally) {
        self.seeds += 1;
        self.tally.events += tally.events;
        self.tally.jobs += tally.jobs;
        self.tally.commits += tally.commits;
        self.tally.virtual_us += tally.virtual_us;
        for (sum, n) in self.tally.faults.iter_mut().zip(tally.faults) {
            *sum += n;
        }
        self.tally.looks += tally.looks;
        self.tally.printed += tally.printed;
        self.tally.compared += tally.compared;
    }

    pub(crate) fn report(&self, seconds: f64) -> String {
        let tally = &self.tally;
        let faults = Fault::ALL.iter().zip(tally.faults);
        let faults: Vec<String> = faults.map(|(fault, n)| format!("{fault:?} {n}")).collect();
        #[expect(
            clippy::cast_precision_loss,
            reason = "figures for people, three digits of them"
        )]
        let rate = tally.events as f64 / seconds / 1e6;
        format!(
            "{} seeds, {} jobs, {} commits, {} events in {seconds:.1} s of one core: {rate:.2} M events/s\n{} virtual hours, \
             {} bytes printed, {} bytes of output read and compared, {} logs read when a wait was answered\n{} faults: {}",
            self.seeds,
            tally.jobs,
            tally.commits,
            tally.events,
            tally.virtual_us / 3_600_000_000,
            tally.printed,
            tally.compared,
            tally.looks,
            tally.faults.iter().sum::<u64>(),
            faults.join(", ")
        )
    }
}

/// How much time a clock has counted; it is said to people, and decides nothing in a run.
pub(crate) fn seconds(clock: ClockId) -> f64 {
    let now = rustix::time::clock_gettime(clock);
    #[expect(
        clippy::cast_precision_loss,
        reason = "figures for people, three digits of them"
    )]
    let (s, ns) = (now.tv_sec as f64, now.tv_nsec as f64);
    s + ns / 1e9
}

/// A seed nobody has tried.
pub(crate) fn fresh() -> u64 {
    getrandom::u64().map_or(1, |seed| seed >> 16)
}
