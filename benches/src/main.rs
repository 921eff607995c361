//! `hostler-bench`: what the project measures itself with, and users do not need: the table of its figures, and other
//! systems beside it. What users measure with is `hostler bench`.
#![expect(
    clippy::print_stdout,
    reason = "a command whose data goes to standard output"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use hostler_benches::environment::Environment;
use hostler_benches::system::{Source, find_binary};
use hostler_benches::{document, figures, peers};

/// The project's own figures
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    /// The hostler binary [default: beside this program]
    #[arg(long, env = "HOSTLER_BIN", global = true)]
    binary: Option<PathBuf>,

    /// A document whose section of that name is written anew
    #[arg(long, global = true, value_name = "FILE")]
    write: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The table of figures, each beside its reference
    Figures(figures::Plan),
    /// The same work given to other systems, in turn; `benches/peers/run` installs them first
    Peers(peers::Plan),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let source = Source::Own(find_binary(cli.binary)?);
    let mut text = String::new();
    for (name, value) in Environment::of_machine().rows() {
        text.push_str(&format!("{name}: {value}  \n"));
    }
    text.push('\n');
    let section = match cli.command {
        Command::Figures(plan) => {
            text.push_str(&figures::as_markdown(&figures::rows(&source, &plan)?));
            text.push_str(&format!("\nMedians of {} paired runs.\n", plan.runs));
            "figures"
        }
        Command::Peers(plan) => {
            text.push_str(&peers::measure(&source, &plan)?);
            "peers"
        }
    };
    println!("{text}");
    if let Some(path) = cli.write {
        document::write_section(&path, section, &text)?;
    }
    Ok(())
}
