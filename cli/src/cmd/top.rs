//! `top`: the cluster, live, on a whole terminal.

use std::io::{self, IsTerminal};
use std::time::Duration;

use hostler_wire::api::{QueueList, Stats, Version, WorkerList};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use crate::client::Ask;
use crate::clock::Moment;
use crate::context::Context;
use crate::duration;
use crate::exit::{Exit, Failure};
use crate::output::top::{Board, Look, Rates, draw};

/// Queues, workers, rates and slots, live
#[derive(Debug, clap::Args)]
#[command(after_help = "Keys: q, Esc or Ctrl-C ends it.")]
pub(crate) struct Args {
    /// Between two looks [default: 2s]
    #[arg(short, long, value_name = "TIME", value_parser = duration::parse)]
    every: Option<Duration>,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::usage("`top` needs a terminal").hint(
            "`hostler status` tells the same once, and `hostler status -o json` to programs",
        ));
    }
    // Fails before the terminal is taken over, if there is no server.
    let look = look(context).await?;
    let mut board = Board {
        address: context.client.address().to_string(),
        look,
        rates: None,
        trouble: None,
    };
    let mut terminal = ratatui::try_init()?;
    let end = watch(args, context, &mut board, &mut terminal).await;
    ratatui::try_restore()?;
    end.map(|()| Exit::Done)
}

async fn watch(
    args: Args,
    context: &mut Context,
    board: &mut Board,
    terminal: &mut ratatui::DefaultTerminal,
) -> Result<(), Failure> {
    let every = args.every.unwrap_or(Duration::from_secs(2));
    let mut looked = Moment::now();
    loop {
        terminal.draw(|frame| draw(frame, board))?;
        while let Some(left) = every.checked_sub(looked.elapsed()) {
            // Nothing else waits on this thread, so the terminal may be waited for.
            if event::poll(left)? {
                match event::read()? {
                    Event::Key(key) if key.kind == KeyEventKind::Press => {
                        let interrupt = key.code == KeyCode::Char('c')
                            && key.modifiers.contains(KeyModifiers::CONTROL);
                        if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                            return Ok(());
                        }
                    }
                    Event::Resize(..) => break,
                    Event::Key(_)
                    | Event::Mouse(_)
                    | Event::Paste(_)
                    | Event::FocusGained
                    | Event::FocusLost => {}
                }
            }
        }
        if looked.elapsed() < every {
            continue; // the window has changed
        }
        let elapsed = looked.elapsed();
        looked = Moment::now();
        match look(context).await {
            Ok(newer) => {
                board.rates = Rates::between(&board.look, &newer, elapsed);
                board.look = newer;
                board.trouble = None;
            }
            // What was last seen stays, and it is said that it is old.
            Err(failure) => board.trouble = Some(failure.to_string()),
        }
    }
}

async fn look(context: &mut Context) -> Result<Look, Failure> {
    let client = &mut context.client;
    let version: Version = client.fetch(&Ask::get("/version")).await?;
    let stats: Stats = client.fetch(&Ask::get("/stats")).await?;
    let queues: QueueList = client.fetch(&Ask::get("/queues")).await?;
    let workers: WorkerList = client.fetch(&Ask::get("/workers")).await?;
    Ok(Look {
        version,
        stats,
        queues: queues.queues,
        workers: workers.workers,
    })
}
