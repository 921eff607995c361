//! `cancel`: ends jobs, one by one.

use hostler_wire::api::JobView;
use hostler_wire::{JobId, JobState};
use serde::Deserialize;

use crate::client::{Ask, encode, read};
use crate::cmd::filter::{self, Filter};
use crate::context::Context;
use crate::exit::{Exit, Failure};
use crate::output::{self, Form, detail, json, list};
use crate::select::{Selected, Selector};

/// Cancel jobs
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A waiting job is cancelled at once; a running one is told to stop and is cancelling until it has.

Examples:
  hostler cancel 1042
  hostler cancel 3-9,12 --reason 'wrong input'
  hostler cancel --queue video --state queued -y")]
pub(crate) struct Args {
    /// Which jobs: 7, 3-9,12, last
    #[arg(value_name = "IDS")]
    ids: Vec<Selector>,

    #[command(flatten)]
    filter: Filter,

    /// Why: kept with the job
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Kill at once, without the time to stop
    #[arg(long)]
    force: bool,

    /// Do not ask, however many there are
    #[arg(short, long)]
    yes: bool,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context) -> Result<Exit, Failure> {
    let live = [
        JobState::Scheduled,
        JobState::Blocked,
        JobState::Queued,
        JobState::Running,
    ];
    let selected = chosen(context, &args.ids, &args.filter, &live).await?;
    context.agree("cancel", selected.ids.len(), args.yes)?;
    let mut query = String::new();
    if let Some(reason) = &args.reason {
        query.push_str(&format!("?reason={}", encode(reason)));
    }
    if args.force {
        query.push_str(if query.is_empty() {
            "?force=1"
        } else {
            "&force=1"
        });
    }
    let mut result = Each::new(&selected);
    for id in &selected.ids {
        let answer = context
            .client
            .ask(&Ask::delete(format!("/jobs/{id}{query}")))
            .await?;
        match answer.yes().await? {
            Ok(answer) => tell(context.form(), *id, &answer.bytes().await?)?,
            Err(refusal) => {
                let status = refusal.status;
                let told = match status {
                    409 if selected.named.contains(id) => how_it_ended(context, *id).await,
                    _ => None,
                };
                let failure = told.unwrap_or_else(|| refusal.into_failure());
                result.refused(*id, status, failure);
            }
        }
    }
    result.exit("had already finished")
}

/// The refusal in the words a person looks for: how the job ended, and when.
async fn how_it_ended(context: &mut Context, id: JobId) -> Option<Failure> {
    let ask = Ask::get(format!("/jobs/{id}?live=0"));
    let job: JobView = context.client.fetch(&ask).await.ok()?;
    let at = detail::local(job.finished_at?, list::now_ms());
    let told = format!("job {id} already {} at {at}", job.state);
    Some(Failure::new(Exit::Conflict, told))
}

#[derive(Deserialize)]
struct State {
    state: String,
}

fn tell(form: Form, id: JobId, body: &[u8]) -> Result<(), Failure> {
    match form {
        Form::Json | Form::Ndjson => json::text(form, &String::from_utf8_lossy(body)),
        Form::Id => output::line(id),
        Form::Table | Form::Wide => {
            let State { state } = read(body)?;
            output::line(format_args!("Job {id} {}", output::plain(&state)))
        }
    }
}

/// The jobs that ids and filters name: by id, or all that the filter lets through, in these states if it names none.
pub(crate) async fn chosen(
    context: &mut Context,
    ids: &[Selector],
    filter: &Filter,
    states: &[JobState],
) -> Result<Selected, Failure> {
    match (ids.is_empty(), filter.is_empty()) {
        (false, true) => context.resolve(ids).await,
        (true, false) => {
            let mut filter = filter.clone();
            if filter.state.is_empty() {
                filter.state = states.to_vec();
            }
            let ids = filter::ids(context, &filter).await?;
            if ids.is_empty() {
                return Err(Failure::new(Exit::Unknown, "no job is like that"));
            }
            Ok(Selected {
                ids,
                named: Default::default(),
            })
        }
        (true, true) => Err(Failure::usage("which jobs?")
            .hint("name them (7, 3-9,12, last) or filter them (--queue q --state queued)")),
        (false, false) => Err(Failure::usage("ids and filters exclude each other")),
    }
}

/// What came of a command on each of several jobs. Those nobody called by name may be missing or past it.
pub(crate) struct Each<'a> {
    selected: &'a Selected,
    worst: Option<Failure>,
    past: usize,
}

impl<'a> Each<'a> {
    pub(crate) fn new(selected: &'a Selected) -> Self {
        Self {
            selected,
            worst: None,
            past: 0,
        }
    }

    /// The server refused one of them.
    pub(crate) fn refused(&mut self, id: JobId, status: u16, failure: Failure) {
        let named = self.selected.named.contains(&id);
        match status {
            404 | 410 if !named => {}
            409 if !named => self.past += 1,
            _ => {
                if let Some(earlier) = self.worst.replace(failure) {
                    output::failure(&earlier);
                }
            }
        }
    }

    /// How it ends: with the last refusal, if there was one. `past` says what the passed-over ones were.
    pub(crate) fn exit(self, past: &str) -> Result<Exit, Failure> {
        if self.past > 0 {
            output::note(format_args!("{} {past}", self.past));
        }
        self.worst.map_or(Ok(Exit::Done), Err)
    }
}
