//! What a command that talks to a server is given: merged settings and a client.

use hostler_wire::JobId;
use hostler_wire::api::JobList;

use crate::client::{Ask, Client};
use crate::exit::{Exit, Failure};
use crate::output::{self, Form};
use crate::select::{self, Selected, Selector};
use crate::settings::{Global, Settings};

/// Above this many jobs a command that changes them asks first.
const UNASKED_MAX: usize = 20;

/// One run of a command.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) client: Client,
}

impl Context {
    /// Merges the settings and makes a client that has not connected yet.
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        let settings = Settings::merge(global)?;
        let token = settings.token()?;
        let client = Client::new(settings.addresses.clone(), token.as_deref(), &settings.tls)?;
        Ok(Self { settings, client })
    }

    /// The form of the data.
    pub(crate) fn form(&self) -> Form {
        self.settings.form
    }

    /// The jobs that selectors name; asks the server which is the last one if need be.
    pub(crate) async fn resolve(&mut self, selectors: &[Selector]) -> Result<Selected, Failure> {
        let last = if selectors.iter().any(Selector::wants_last) {
            self.last().await?
        } else {
            None
        };
        select::resolve(selectors, last).map_err(|error| {
            let exit = if error == select::InvalidSelector::NoLast {
                Exit::Unknown
            } else {
                Exit::Usage
            };
            Failure::new(exit, error.to_string())
        })
    }

    async fn last(&mut self) -> Result<Option<JobId>, Failure> {
        let newest: JobList = self.client.fetch(&Ask::get("/jobs?limit=1")).await?;
        Ok(newest.jobs.first().map(|job| job.id))
    }

    /// A yes for changing that many jobs: given beforehand (`-y`), not needed for few, or asked for.
    pub(crate) fn agree(&self, verb: &str, jobs: usize, yes: bool) -> Result<(), Failure> {
        if yes || jobs <= UNASKED_MAX {
            return Ok(());
        }
        if self.settings.no_input || !output::can_ask() {
            return Err(Failure::usage(format!(
                "{verb} {jobs} jobs needs a yes, and nobody can be asked"
            ))
            .hint("add -y"));
        }
        if output::confirm(&format!("{verb} {jobs} jobs?")) {
            Ok(())
        } else {
            Err(Failure::new(Exit::Unsuccessful, "nothing was changed"))
        }
    }
}
