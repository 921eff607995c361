//! What stands between the worker and a job's program where something must be done in the new process first.
//!
//! Code between fork and exec would take from the worker the fast way to start processes (`spawn`), so where a control
//! group is to be joined or limits are to be set the worker starts this program instead, which does that and then
//! becomes the job's program. It costs another exec, about as much as the first.
//!
//! Why that did not succeed goes down a pipe; its other end, closed without a word, means that it did.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;
use std::{iter, ptr};

use rustix::io::FdFlags;
use rustix::process::{Resource, Rlimit};

/// The argument by which a program knows that it is to be this.
pub const ARGUMENT: &str = "__exec";

/// One of the limits of `setrlimit`, soft and hard; none = no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceLimit {
    name: &'static str,
    soft: Option<u64>,
    hard: Option<u64>,
}

const RESOURCES: [(&str, Resource); 10] = [
    ("as", Resource::As),
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("memlock", Resource::Memlock),
    ("nice", Resource::Nice),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("stack", Resource::Stack),
];

impl FromStr for ResourceLimit {
    type Err = String;

    /// `nofile=1024`, `core=0`, `cpu=600:700` (soft and hard), `as=unlimited`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no limit: write nofile=1024, or nofile=1024:4096");
        let (name, values) = text.split_once('=').ok_or_else(wrong)?;
        let known = RESOURCES.iter().find(|(known, _)| *known == name);
        let (name, _) = *known.ok_or_else(|| {
            let known = RESOURCES.map(|(name, _)| name).join(", ");
            format!("\"{name}\" is no limit of the system: there are {known}")
        })?;
        let number = |text: &str| match text {
            "unlimited" => Ok(None),
            text => text.parse().map(Some).map_err(|_no_number| wrong()),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let limit = Self {
            name,
            soft: number(soft)?,
            hard: number(hard)?,
        };
        if limit.soft.unwrap_or(u64::MAX) > limit.hard.unwrap_or(u64::MAX) {
            return Err(format!("\"{text}\": the soft limit is above the hard one"));
        }
        Ok(limit)
    }
}

impl ResourceLimit {
    fn resource(&self) -> Resource {
        let known = RESOURCES.iter().find(|(name, _)| *name == self.name);
        known.expect("it was found when it was parsed").1
    }

    /// Whether this process may set it, in words why not.
    pub(crate) fn check(&self) -> Result<(), String> {
        let ours = rustix::process::getrlimit(self.resource());
        let (asked, most) = (
            self.hard.unwrap_or(u64::MAX),
            ours.maximum.unwrap_or(u64::MAX),
        );
        if asked > most && !rustix::process::geteuid().is_root() {
            return Err(format!(
                "the limit {} cannot be raised to {asked}: the worker's own is {most}",
                self.name
            ));
        }
        Ok(())
    }

    fn set(&self) -> io::Result<()> {
        let limit = Rlimit {
            current: self.soft,
            maximum: self.hard,
        };
        rustix::process::setrlimit(self.resource(), limit)
            .map_err(|error| io::Error::new(io::Error::from(error).kind(), error))
    }
}

/// Limits as one argument.
pub(crate) fn as_argument(limits: &[ResourceLimit]) -> String {
    let number = |n: Option<u64>| n.map_or("unlimited".to_owned(), |n| n.to_string());
    let words = limits.iter().map(|limit| {
        let (soft, hard) = (number(limit.soft), number(limit.hard));
        format!("{}={soft}:{hard}", limit.name)
    });
    words.collect::<Vec<_>>().join(",")
}

/// Becomes the job's program: `PIPE GROUP LIMITS PROGRAM NAME ARGUMENTS…`. Returns only if that failed, with the code to
/// exit with.
pub fn exec(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    const FAILED: u8 = 127;
    let mut arguments = arguments.into_iter();
    let number = arguments.next().and_then(|it| it.to_str()?.parse().ok());
    let Some(pipe) = number.and_then(taken) else {
        return FAILED;
    };
    let (what, error) = prepare(&mut arguments);
    let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
    let mut words = errno.to_le_bytes().to_vec();
    words.extend_from_slice(format!("{}: {error}", what.display()).as_bytes());
    // If nobody listens any more, nobody is to be told.
    drop(std::fs::File::from(pipe).write_all(&words));
    FAILED
}

/// Returns what could not be done, and why.
fn prepare(arguments: &mut impl Iterator<Item = OsString>) -> (OsString, io::Error) {
    let short = || io::Error::from_raw_os_error(libc::EINVAL);
    let (Some(group), Some(limits), Some(program), Some(name)) = (
        arguments.next(),
        arguments.next(),
        arguments.next(),
        arguments.next(),
    ) else {
        return (ARGUMENT.into(), short());
    };
    if !group.is_empty()
        && let Err(error) = std::fs::write(std::path::Path::new(&group).join("cgroup.procs"), "0")
    {
        return (group, error);
    }
    for text in limits.to_str().unwrap_or("?").split(',') {
        let set = match text {
            "" => Ok(()),
            text => text
                .parse::<ResourceLimit>()
                .map_err(|_no_number| short())
                .and_then(|limit| limit.set()),
        };
        if let Err(error) = set {
            return (text.into(), error);
        }
    }
    let error = become_program(&program, iter::once(name).chain(arguments));
    (program, error)
}

/// Returns only if it could not be. The standard library's `exec` would have a shell read a file that is no program.
#[expect(
    unsafe_code,
    reason = "the standard library offers execvp alone, with a shell where it fails"
)]
fn become_program(program: &OsStr, arguments: impl Iterator<Item = OsString>) -> io::Error {
    let text = |it: &OsStr| CString::new(it.as_bytes());
    let (Ok(program), Ok(arguments)) = (
        text(program),
        arguments.map(|it| text(&it)).collect::<Result<Vec<_>, _>>(),
    ) else {
        return io::Error::from_raw_os_error(libc::EINVAL);
    };
    let mut pointers: Vec<*const libc::c_char> = arguments.iter().map(|it| it.as_ptr()).collect();
    pointers.push(ptr::null());
    // SAFETY: program and arguments are strings with an end, the list of them ends with a null, and all of it lives until
    // the call returns, which it does only if it failed.
    unsafe { libc::execv(program.as_ptr(), pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// The descriptor of that number, which was left to us and goes no further.
#[expect(
    unsafe_code,
    reason = "a descriptor that is inherited is known by its number only"
)]
fn taken(number: RawFd) -> Option<OwnedFd> {
    if number <= 2 {
        return None;
    }
    // SAFETY: the worker has left this descriptor open for us alone; nothing else in this process knows its number. If it
    // were not open, the next line would say so and the value is forgotten, not closed.
    let pipe = unsafe { OwnedFd::from_raw_fd(number) };
    match rustix::io::fcntl_setfd(pipe.as_fd(), FdFlags::CLOEXEC) {
        Ok(()) => Some(pipe),
        Err(_) => {
            std::mem::forget(pipe);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_read_as_it_is_written_and_what_is_none_is_named() {
        let limits: Vec<ResourceLimit> = ["nofile=64:128", "core=0", "as=unlimited"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        assert_eq!(
            as_argument(&limits),
            "nofile=64:128,core=0:0,as=unlimited:unlimited"
        );
        for (text, said) in [
            ("nofile", "no limit"),
            ("nofile=many", "no limit"),
            ("files=3", "there are as, core"),
            ("nofile=5:4", "above the hard one"),
            ("nofile=unlimited:4", "above the hard one"),
        ] {
            let error = text.parse::<ResourceLimit>().unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
