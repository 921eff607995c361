//! What server and worker print about themselves: to standard error, for people on a terminal, as JSON elsewhere.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::LevelFilter;

/// Options of the commands that print a trace.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TraceArgs {
    /// Least important trace shown: off, error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL", env = "HOSTLER_LOG", hide_env = true)]
    pub(crate) log_level: Option<LevelFilter>,

    /// Form of the trace: text, json, or auto: text on a terminal
    #[arg(long, value_enum, value_name = "FORM", hide_possible_values = true)]
    pub(crate) log_format: Option<TraceFormat>,
}

/// Form of the trace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TraceFormat {
    #[default]
    Auto,
    Text,
    Json,
}

/// From now on traces are printed. A second call changes nothing.
pub(crate) fn start(level: LevelFilter, format: TraceFormat) {
    let terminal = io::stderr().is_terminal();
    let text = match format {
        TraceFormat::Auto => terminal,
        TraceFormat::Text => true,
        TraceFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr);
    let started = if text {
        builder.with_ansi(terminal).with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
    drop(started);
}
