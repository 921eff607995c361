//! `completions`: a script that teaches a shell our commands.

use clap_complete::Shell;

use crate::exit::{Exit, Failure};
use crate::output;

/// Completions for your shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hostler completions bash > ~/.local/share/bash-completion/completions/hostler
  hostler completions zsh > \"${fpath[1]}/_hostler\"
  hostler completions fish > ~/.config/fish/completions/hostler.fish")]
pub(crate) struct Args {
    /// Which shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Runs it.
pub(crate) fn run(args: &Args, mut command: clap::Command) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "hostler", &mut script);
    output::raw(&script)?;
    Ok(Exit::Done)
}
