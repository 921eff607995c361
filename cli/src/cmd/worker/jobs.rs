//! What a worker gives to its commands, and what it lets them use.

use std::path::PathBuf;

use hostler_worker::shim::ResourceLimit;
use hostler_worker::{Config, Delegated, GroupLimits};

use crate::exit::Failure;
use crate::settings::WorkerFile;
use crate::size;

/// Options about jobs.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "What jobs get")]
pub(super) struct JobArgs {
    /// A variable of the worker that its jobs see too, beside PATH, HOME, USER, LOGNAME, SHELL, LANG, LC_*, TZ and
    /// TMPDIR; repeat for several
    #[arg(long = "inherit-env", value_name = "NAME", value_delimiter = ',')]
    inherit_env: Vec<String>,

    /// Mask of permissions that jobs begin with, octal [default: the worker's]
    #[arg(long, value_name = "MASK", value_parser = umask)]
    job_umask: Option<u32>,

    /// A limit of the system for each process of a job: nofile=1024, core=0, cpu=600:700 (soft and hard)
    #[arg(long = "job-rlimit", value_name = "NAME=N", value_delimiter = ',')]
    job_rlimits: Vec<ResourceLimit>,

    /// Give each job a control group below this one, or below the worker's own if that was delegated to it
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "own", require_equals = true)]
    cgroup: Option<String>,

    /// Memory of a job, all its processes together; above it is killed (implies --cgroup)
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    job_memory_max: Option<u64>,

    /// Processors a job may use, such as 1.5 (implies --cgroup)
    #[arg(long, value_name = "N", value_parser = millicpus)]
    job_cpus_max: Option<u32>,

    /// Processes and threads of a job (implies --cgroup)
    #[arg(long, value_name = "N")]
    job_pids_max: Option<u32>,
}

/// What was said of jobs, from everywhere.
#[derive(Debug)]
pub(super) struct JobSettings {
    inherit_env: Vec<String>,
    umask: Option<u32>,
    resource_limits: Vec<ResourceLimit>,
    groups: Option<Delegated>,
    group_limits: GroupLimits,
    shim: Option<PathBuf>,
}

impl JobArgs {
    /// Merges flags and file.
    pub(super) fn settings(&self, file: &WorkerFile) -> Result<JobSettings, Failure> {
        let wrong = |name: &str, error: String| {
            Failure::usage(format!("worker.{name} in the configuration: {error}"))
        };
        let umask = match (self.job_umask, &file.job_umask) {
            (None, Some(text)) => Some(umask(text).map_err(|error| wrong("job_umask", error))?),
            (said, _) => said,
        };
        let mut resource_limits = self.job_rlimits.clone();
        if resource_limits.is_empty() {
            for text in file.job_rlimits.iter().flatten() {
                let limit = text.parse().map_err(|error| wrong("job_rlimits", error))?;
                resource_limits.push(limit);
            }
        }
        let memory_bytes = match (self.job_memory_max, &file.job_memory_max) {
            (None, Some(text)) => {
                Some(size::parse(text).map_err(|error| wrong("job_memory_max", error))?)
            }
            (said, _) => said,
        };
        let from_file =
            |cpus: f64| millicpus(&cpus.to_string()).map_err(|error| wrong("job_cpus_max", error));
        let group_limits = GroupLimits {
            memory_bytes,
            millicpus: match (self.job_cpus_max, file.job_cpus_max) {
                (None, Some(cpus)) => Some(from_file(cpus)?),
                (said, _) => said,
            },
            processes: self.job_pids_max.or(file.job_pids_max),
        };
        let groups = match self.cgroup.as_deref().or(file.cgroup.as_deref()) {
            None => group_limits.any().then_some(Delegated::Own),
            Some("own") => Some(Delegated::Own),
            Some(path) if path.starts_with('/') => Some(Delegated::At(path.into())),
            Some(path) => {
                let message =
                    format!("\"{path}\" is no control group: write its directory, or own");
                return Err(Failure::usage(message));
            }
        };
        let inherit_env = match (&self.inherit_env[..], &file.inherit_env) {
            ([], Some(names)) => names.clone(),
            (names, _) => names.to_vec(),
        };
        let needs_shim = groups.is_some() || !resource_limits.is_empty();
        let shim = needs_shim.then(std::env::current_exe).transpose()?;
        Ok(JobSettings {
            inherit_env,
            umask,
            resource_limits,
            groups,
            group_limits,
            shim,
        })
    }
}

impl JobSettings {
    /// Tells the worker.
    pub(super) fn apply(self, config: &mut Config) {
        config.inherit_env = self.inherit_env;
        config.umask = self.umask;
        config.resource_limits = self.resource_limits;
        config.groups = self.groups;
        config.group_limits = self.group_limits;
        config.shim = self.shim;
    }
}

fn umask(text: &str) -> Result<u32, String> {
    let mask = u32::from_str_radix(text, 8).ok();
    let mask = mask.filter(|mask| *mask <= 0o777);
    mask.ok_or_else(|| format!("\"{text}\" is no mask of permissions: write 022, at most 777"))
}

/// Thousandths of a processor; the kernel takes a hundredth at least.
fn millicpus(text: &str) -> Result<u32, String> {
    let wrong = || format!("\"{text}\" is no number of processors: write 2 or 0.5, 0.01 to 100000");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 3 {
        return Err(wrong());
    }
    let whole: u32 = whole.parse().map_err(|_no_number| wrong())?;
    let part: u32 = format!("{part:0<3}")
        .parse()
        .map_err(|_no_number| wrong())?;
    let all = whole
        .checked_mul(1_000)
        .and_then(|all| all.checked_add(part));
    all.filter(|all| (10..=100_000_000).contains(all))
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_and_masks_are_read_as_they_are_written() {
        for (text, millis) in [("2", 2_000), ("0.5", 500), ("1.25", 1_250), ("0.01", 10)] {
            assert_eq!(millicpus(text), Ok(millis), "{text}");
        }
        for text in ["", "0", "0.001", "-1", "two", "1.2.3", "1e3", "0.0005"] {
            assert!(millicpus(text).is_err(), "{text}");
        }
        assert_eq!(umask("027"), Ok(0o27));
        for text in ["8", "1000", "-1", "u=rwx"] {
            assert!(umask(text).is_err(), "{text}");
        }
    }
}
