//! How much output a server keeps, and for how long.

use std::time::Duration;

use hostler_server::config::Limits;
use hostler_server::output::{LIMIT_BYTES_MIN, TOTAL_BYTES_MIN};

use crate::duration;
use crate::exit::Failure;
use crate::settings::ServerFile;
use crate::size;

/// Options about output.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Output of jobs")]
pub(super) struct KeptArgs {
    /// Output kept of one attempt, head and tail of it [default: 16MiB]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    output_max: Option<u64>,

    /// Output kept of all jobs; above it the oldest goes [default: 64GiB]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    output_total_max: Option<u64>,

    /// How long the output of jobs that did not fail is kept [default: 7d]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    output_keep: Option<Duration>,

    /// How long that of jobs that failed is kept [default: 30d]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    output_keep_failed: Option<Duration>,
}

impl KeptArgs {
    /// Merges flags, file and defaults, and checks what comes of it.
    pub(super) fn apply(&self, file: &ServerFile, limits: &mut Limits) -> Result<(), Failure> {
        let wrong = |name: &str, error: String| {
            Failure::usage(format!("server.{name} in the configuration: {error}"))
        };
        for (name, flag, text, value) in [
            (
                "output_max",
                self.output_max,
                &file.output_max,
                &mut limits.output_bytes_max,
            ),
            (
                "output_total_max",
                self.output_total_max,
                &file.output_total_max,
                &mut limits.output_total_bytes_max,
            ),
        ] {
            match (flag, text) {
                (Some(said), _) => *value = said,
                (None, Some(text)) => {
                    *value = size::parse(text).map_err(|error| wrong(name, error))?;
                }
                (None, None) => {}
            }
        }
        for (name, flag, text, value) in [
            (
                "output_keep",
                self.output_keep,
                &file.output_keep,
                &mut limits.output_keep,
            ),
            (
                "output_keep_failed",
                self.output_keep_failed,
                &file.output_keep_failed,
                &mut limits.output_keep_failed,
            ),
        ] {
            match (flag, text) {
                (Some(said), _) => *value = said,
                (None, Some(text)) => {
                    *value = duration::parse(text).map_err(|error| wrong(name, error))?;
                }
                (None, None) => {}
            }
        }
        check(limits)
    }
}

fn check(limits: &Limits) -> Result<(), Failure> {
    let least = |what: &str, value: u64, least: u64| {
        if value >= least {
            return Ok(());
        }
        Err(Failure::usage(format!(
            "{what} is {value} bytes, the least is {least}"
        )))
    };
    least("output-max", limits.output_bytes_max, LIMIT_BYTES_MIN)?;
    least(
        "output-total-max",
        limits.output_total_bytes_max,
        TOTAL_BYTES_MIN.max(2 * limits.output_bytes_max),
    )?;
    if limits.output_keep > limits.output_keep_failed {
        return Err(Failure::usage(format!(
            "output of jobs that failed would go after {:?}, that of the others after {:?}: it is what people look for",
            limits.output_keep_failed, limits.output_keep
        ))
        .hint("give --output-keep-failed as well"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(args: KeptArgs, file: &ServerFile) -> Result<Limits, Failure> {
        let mut limits = Limits::default();
        args.apply(file, &mut limits).map(|()| limits)
    }

    fn nothing() -> KeptArgs {
        KeptArgs {
            output_max: None,
            output_total_max: None,
            output_keep: None,
            output_keep_failed: None,
        }
    }

    #[test]
    fn a_flag_beats_the_file_and_what_makes_no_sense_is_refused() {
        let file = ServerFile {
            output_keep: Some("1d".to_owned()),
            output_total_max: Some("1GiB".to_owned()),
            ..ServerFile::default()
        };
        let limits = merged(
            KeptArgs {
                output_keep: Some(Duration::from_secs(60)),
                ..nothing()
            },
            &file,
        )
        .unwrap();
        assert_eq!(limits.output_keep, Duration::from_secs(60));
        assert_eq!(limits.output_total_bytes_max, 1 << 30);
        for (args, said) in [
            (
                KeptArgs {
                    output_max: Some(10),
                    ..nothing()
                },
                "the least is 4096",
            ),
            (
                KeptArgs {
                    output_total_max: Some(1 << 20),
                    ..nothing()
                },
                "the least is 134217728",
            ),
            (
                KeptArgs {
                    output_keep: Some(Duration::from_secs(86_400 * 31)),
                    ..nothing()
                },
                "people look for",
            ),
        ] {
            let failure = merged(args, &ServerFile::default()).unwrap_err();
            assert!(failure.to_string().contains(said), "{failure}");
        }
    }
}
