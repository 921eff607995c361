//! Which jobs a list shows, or a command changes, by what they are: `--queue q --state queued`. And reading lists page
//! by page.

use hostler_wire::api::JobView;
use hostler_wire::{JobId, JobState};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::client::{Ask, encode, read};
use crate::cmd::spec::{moment, pair};
use crate::context::Context;
use crate::duration;
use crate::exit::Failure;
use crate::select::SELECTED_MAX;

/// Most jobs asked for in one page.
const PAGE_JOBS_MAX: u64 = 500;

/// What jobs must be like.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Filters")]
pub(crate) struct Filter {
    /// In this state; several with commas: queued,running
    #[arg(short, long, value_name = "STATE", value_delimiter = ',', value_parser = state)]
    pub(crate) state: Vec<JobState>,

    /// In this queue
    #[arg(short, long, value_name = "QUEUE")]
    pub(crate) queue: Option<String>,

    /// Of this name
    #[arg(short, long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// With this label
    #[arg(long, value_name = "K=V", value_parser = pair)]
    pub(crate) label: Option<(String, String)>,

    /// On this worker
    #[arg(long, value_name = "WORKER")]
    pub(crate) worker: Option<String>,

    /// Submitted since: 10m (ago), or a time
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub(crate) since: Option<String>,

    /// Submitted until: 10m (ago), or a time
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub(crate) until: Option<String>,
}

impl Filter {
    /// Whether it lets every job through.
    pub(crate) fn is_empty(&self) -> bool {
        self.query().is_empty()
    }

    /// As parameters, each with an `&` in front.
    pub(crate) fn query(&self) -> String {
        let mut query = String::new();
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                query.push_str(&format!("&{name}={}", encode(&value)));
            }
        };
        let states: Vec<_> = self.state.iter().map(|state| state.name()).collect();
        add("state", (!states.is_empty()).then(|| states.join(",")));
        add("queue", self.queue.clone());
        add("name", self.name.clone());
        let label = self.label.as_ref();
        add("label", label.map(|(key, value)| format!("{key}={value}")));
        add("worker", self.worker.clone());
        add("since", self.since.clone());
        add("until", self.until.clone());
        query
    }
}

fn state(text: &str) -> Result<JobState, String> {
    let name = if text == "ok" { "succeeded" } else { text };
    JobState::from_name(name).ok_or_else(|| {
        let known: Vec<_> = JobState::ALL.iter().map(|state| state.name()).collect();
        format!("there is no such state; there are {}", known.join(", "))
    })
}

/// A length of time before now, or a time; as the server reads it.
pub(crate) fn since(text: &str) -> Result<String, String> {
    if let Ok(duration) = duration::parse(text) {
        return Ok(format!("{}ms", duration::millis(duration)));
    }
    moment(text).map(|at| at.to_string()).or(Err(
        "write 10m (ago), 2026-11-24T18:00 (local time) or 2026-11-24T18:00:00Z".into(),
    ))
}

/// One page, its jobs as the server sent them.
#[derive(Debug, Deserialize)]
pub(crate) struct Page {
    pub(crate) jobs: Vec<Box<RawValue>>,
    pub(crate) next_cursor: Option<String>,
}

impl Page {
    /// The jobs, read.
    pub(crate) fn views(&self) -> Result<Vec<JobView>, Failure> {
        self.jobs
            .iter()
            .map(|job| read(job.get().as_bytes()))
            .collect()
    }
}

/// Reads a list page by page.
#[derive(Debug)]
pub(crate) struct Pages {
    query: String,
    left: u64,
    cursor: Option<String>,
    over: bool,
    live: bool,
}

impl Pages {
    /// The first `limit` jobs that the filter lets through, newest first.
    pub(crate) fn new(filter: &Filter, limit: u64) -> Self {
        Self {
            query: filter.query(),
            left: limit,
            cursor: None,
            over: false,
            live: false,
        }
    }

    /// With what the workers say of those that run.
    pub(crate) fn live(self, live: bool) -> Self {
        Self { live, ..self }
    }

    /// The next page; none after the last.
    pub(crate) async fn next(&mut self, context: &mut Context) -> Result<Option<Page>, Failure> {
        if self.over || self.left == 0 {
            return Ok(None);
        }
        let mut path = format!("/jobs?limit={}{}", self.left.min(PAGE_JOBS_MAX), self.query);
        if self.live {
            path.push_str("&live=1");
        }
        if let Some(cursor) = &self.cursor {
            path.push_str(&format!("&cursor={}", encode(cursor)));
        }
        let page: Page = context.client.fetch(&Ask::get(path)).await?;
        let got = u64::try_from(page.jobs.len()).unwrap_or(u64::MAX);
        self.left = self.left.saturating_sub(got);
        self.cursor = page.next_cursor.clone();
        self.over = self.cursor.is_none() || got == 0;
        Ok(Some(page))
    }
}

/// The ids of all jobs that the filter lets through, rising; an error if there are too many to handle one by one.
pub(crate) async fn ids(context: &mut Context, filter: &Filter) -> Result<Vec<JobId>, Failure> {
    let mut pages = Pages::new(filter, SELECTED_MAX + 1);
    let mut ids = Vec::new();
    while let Some(page) = pages.next(context).await? {
        ids.extend(page.views()?.iter().map(|job| job.id));
    }
    if ids.len() as u64 > SELECTED_MAX {
        return Err(
            Failure::usage(format!("more than {SELECTED_MAX} jobs are like that"))
                .hint("narrow it down, for instance with --until"),
        );
    }
    ids.sort_unstable();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_becomes_parameters() {
        let filter = Filter {
            state: vec![JobState::Queued, JobState::Running],
            queue: Some("a b".into()),
            label: Some(("team".into(), "x".into())),
            since: Some(since("10m").unwrap()),
            ..Filter::default()
        };
        assert_eq!(
            filter.query(),
            "&state=queued,running&queue=a%20b&label=team%3Dx&since=600000ms"
        );
        assert!(Filter::default().is_empty());
    }

    #[test]
    fn a_state_has_the_name_it_is_shown_with() {
        assert_eq!(state("ok"), Ok(JobState::Succeeded));
        assert_eq!(state("cancelling"), Ok(JobState::Cancelling));
        assert!(state("done").unwrap_err().contains("succeeded"));
    }
}
