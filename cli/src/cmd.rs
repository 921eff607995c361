//! The commands: one file each, with its arguments, its help and its `run`.
//!
//! Here they are put together: the first screen, which runtime a command needs, and how its end becomes the program's.

mod audit;
mod bench;
mod cancel;
mod completions;
mod dev;
mod filter;
mod health;
mod list;
mod logs;
mod progress;
mod queues;
mod retry;
mod run;
mod server;
mod spec;
mod status;
mod submit;
mod tls;
mod token;
mod top;
mod verify;
mod version;
mod wait;
mod worker;
mod workers;

use std::ffi::OsString;
use std::future::Future;

use clap::{CommandFactory, Parser, Subcommand};

use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings::Global;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "hostler",
    version,
    about = "Hostler takes jobs to the machines that run them.",
    long_about = None,
    override_usage = "hostler [OPTIONS] COMMAND [ARGS]",
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 100,
    help_template = HELP,
    after_help = AFTER_HELP,
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

const HELP: &str = "\
{about}

Usage: {usage}

Start here:
  dev          Everything on this machine: server, one worker, data in ./.hostler
  run          Submit a command, show its output, end as it did

Jobs:
  submit       Submit a job, or many from standard input
  list, ls     List jobs
  status       One job in full, or the whole cluster
  logs         What a job printed; -f follows
  wait         Wait until jobs have ended
  cancel       Cancel jobs
  retry        Submit jobs again
  progress     From within a job: say how far it is

Machines:
  server       Run the server
  worker       Run a worker
  workers      List workers
  queues       List queues
  top          Queues, workers, rates and slots, live
  token        Make, list and revoke access tokens
  audit        Who did what
  health       Is the server well?
  tls          Certificates for TLS: tls init makes them
  bench        Load test: how fast, how late, and that nothing is lost
  verify       Check a data directory against every promise
  version      Versions of this program and of the server
  completions  Completions for your shell

Options of every command:
{options}{after-help}";

const AFTER_HELP: &str = "\
Examples:
  hostler dev                                  start everything here, then in another terminal:
  hostler run -- make test                     run a command on a worker, as if it ran here
  hostler submit -q video --retries 3 -- ffmpeg -i in.mov out.mp4
  ID=$(hostler submit -o id -- ./job.sh)       for scripts
  hostler logs -f last                         follow the newest job
  hostler cancel 3-9,12                        several at once

`hostler COMMAND --help` says more. Exit codes: 0 done, 1 a job failed, 2 usage, 3 no such job,
4 token, 5 no server, 6 conflict, 7 refused for now, 124 time is up; under `run` the job's own,
125 if the trouble is ours.";

/// One command.
#[derive(Debug, Subcommand)]
enum Command {
    Dev(dev::Args),
    Run(run::Args),
    Submit(submit::Args),
    #[command(visible_alias = "ls")]
    List(list::Args),
    Status(status::Args),
    Logs(logs::Args),
    Wait(wait::Args),
    Cancel(cancel::Args),
    Retry(retry::Args),
    Progress(progress::Args),
    Server(server::Args),
    Worker(worker::Args),
    Workers(workers::Args),
    Queues(queues::Args),
    Top(top::Args),
    Tls(tls::Args),
    Token(token::Args),
    Audit(audit::Args),
    Health(health::Args),
    Bench(bench::Args),
    Verify(verify::Args),
    Version(version::Args),
    Completions(completions::Args),
}

/// Reads the command line. What clap has to say (help, version, a wrong flag) is printed here.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Cli, Exit> {
    let args: Vec<_> = args.collect();
    Cli::try_parse_from(&args).map_err(|error| {
        drop(error.print());
        match error.exit_code() {
            0 => Exit::Done,
            _ if is_run(&args) => Exit::Ours,
            _ => Exit::Usage,
        }
    })
}

/// Whether a command line that cannot be read was meant for a command that ends as a job does.
fn is_run(args: &[OsString]) -> bool {
    let matches = Cli::command()
        .ignore_errors(true)
        .try_get_matches_from(args);
    matches.is_ok_and(|matches| matches.subcommand_name() == Some("run"))
}

/// Runs a command; tells the user if it failed.
pub(crate) fn run(cli: Cli) -> Exit {
    choose_colours(cli.global.color);
    dispatch(cli).unwrap_or_else(|failure| {
        output::failure(&failure);
        failure.exit()
    })
}

fn dispatch(Cli { command, global }: Cli) -> Result<Exit, Failure> {
    match command {
        Command::Dev(args) => dev::run(args, &global),
        Command::Server(args) => server::run(args, &global),
        Command::Worker(args) => worker::run(args, &global),
        Command::Tls(args) => tls::run(args),
        Command::Bench(args) => bench::run(&args, &global),
        Command::Verify(args) => verify::run(&args, &global),
        Command::Progress(args) => progress::run(&args),
        Command::Completions(args) => completions::run(&args, Cli::command()),
        Command::Run(args) => {
            talk(&global, async |context| run::run(args, context).await).map_err(Failure::ours)
        }
        Command::Submit(args) => talk(&global, async |context| submit::run(args, context).await),
        Command::List(args) => talk(&global, async |context| list::run(args, context).await),
        Command::Status(args) => talk(&global, async |context| status::run(args, context).await),
        Command::Logs(args) => talk(&global, async |context| logs::run(args, context).await),
        Command::Wait(args) => talk(&global, async |context| wait::run(args, context).await),
        Command::Cancel(args) => talk(&global, async |context| cancel::run(args, context).await),
        Command::Retry(args) => talk(&global, async |context| retry::run(args, context).await),
        Command::Workers(args) => talk(&global, async |context| workers::run(args, context).await),
        Command::Queues(args) => talk(&global, async |context| queues::run(args, context).await),
        Command::Top(args) => talk(&global, async |context| top::run(args, context).await),
        Command::Token(args) => talk(&global, async |context| token::run(args, context).await),
        Command::Audit(args) => talk(&global, async |context| audit::run(args, context).await),
        Command::Health(args) => talk(&global, async |context| health::run(args, context).await),
        Command::Version(args) => talk(&global, async |context| version::run(args, context).await),
    }
}

/// Runs what talks to a server.
fn talk(
    global: &Global,
    command: impl AsyncFnOnce(&mut Context) -> Result<Exit, Failure>,
) -> Result<Exit, Failure> {
    let mut context = Context::new(global)?;
    block_on(command(&mut context))?
}

/// Runs one future on a runtime of its own.
fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|error| {
            Failure::new(
                Exit::Unsuccessful,
                format!("cannot start a runtime: {error}"),
            )
        })?;
    Ok(runtime.block_on(future))
}

fn choose_colours(choice: clap::ColorChoice) {
    match choice {
        clap::ColorChoice::Auto => anstream::ColorChoice::Auto,
        clap::ColorChoice::Always => anstream::ColorChoice::Always,
        clap::ColorChoice::Never => anstream::ColorChoice::Never,
    }
    .write_global();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(args: &[&str]) -> u8 {
        let args = args.iter().map(OsString::from);
        match parse([OsString::from("hostler")].into_iter().chain(args)) {
            Ok(_) => panic!("it was understood"),
            Err(exit) => exit.code(),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_stands_on_the_first_screen() {
        let help = Cli::command().render_help().to_string();
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            assert!(
                help.lines().any(|line| line.trim_start().starts_with(name)),
                "{name} is missing"
            );
        }
        assert!(
            help.lines().all(|line| line.chars().count() <= 110),
            "{help}"
        );
    }

    #[test]
    fn a_wrong_command_line_ends_with_2_and_under_run_with_125() {
        assert_eq!(code(&["list", "--no-such"]), 2);
        assert_eq!(code(&["frobnicate"]), 2);
        assert_eq!(code(&["wait", "0"]), 2);
        assert_eq!(code(&["run", "--no-such", "--", "true"]), 125);
        assert_eq!(code(&["run"]), 125);
    }

    #[test]
    fn help_and_version_end_with_0() {
        assert_eq!(code(&["--help"]), 0);
        assert_eq!(code(&["--version"]), 0);
        assert_eq!(code(&["submit", "--help"]), 0);
    }

    #[test]
    fn what_follows_the_command_is_the_commands() {
        for args in [
            &["run", "-q", "video", "--", "ls", "-o", "--server", "x"][..],
            &["run", "ls", "-l", "--timeout"],
            &["submit", "-"],
            &["dev", "--", "echo", "--port"],
        ] {
            let args = args.iter().map(OsString::from);
            parse([OsString::from("hostler")].into_iter().chain(args)).unwrap();
        }
    }
}
