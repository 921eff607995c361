//! Signs of life: what an attempt lately printed, said of its progress, or showed by a heartbeat.
//!
//! The same for commands and handlers. Probes tell of it, and the session ends those that give no sign for their
//! `stall_ms`.
//!
//! Not here: how a command's word comes in (`notes`), when silence is too long (`session`).

use crate::clock::Time;
use crate::session::shorten;

/// Thousands of notes share one answer to a probe.
const NOTE_BYTES_MAX: usize = 256;

/// What is known of one attempt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Signs {
    /// The last sign of life, its start included.
    pub(crate) active: Time,
    /// When output was last read.
    pub(crate) output_at: Option<Time>,
    /// How far it says it is, 0.0 to 1.0.
    pub(crate) progress: Option<f32>,
    /// What it says it is about.
    pub(crate) note: String,
}

impl Signs {
    /// Of an attempt that starts now.
    pub(crate) fn new(now: Time) -> Self {
        Self {
            active: now,
            ..Self::default()
        }
    }

    pub(crate) fn printed(&mut self, now: Time) {
        self.active = now;
        self.output_at = Some(now);
    }

    /// It lives. What it does not say stands as it said it last.
    pub(crate) fn say(&mut self, now: Time, progress: Option<f32>, note: Option<&str>) {
        self.active = now;
        if let Some(progress) = progress.filter(|share| !share.is_nan()) {
            self.progress = Some(progress.clamp(0.0, 1.0));
        }
        if let Some(note) = note {
            note.clone_into(&mut self.note);
            shorten(&mut self.note, NOTE_BYTES_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_stands_as_it_was_and_what_is_beyond_is_taken_as_the_nearer_end() {
        let mut signs = Signs::new(Time::from_us(1));
        signs.say(Time::from_us(2), Some(7.0), Some("half"));
        signs.say(Time::from_us(3), None, None);
        assert_eq!((signs.progress, &*signs.note), (Some(1.0), "half"));
        signs.say(Time::from_us(4), Some(f32::NAN), Some(&"é".repeat(200)));
        assert_eq!(
            (signs.progress, signs.active),
            (Some(1.0), Time::from_us(4))
        );
        assert!(signs.note.len() <= NOTE_BYTES_MAX && signs.note.ends_with("é…"));
        assert_eq!(signs.output_at, None);
    }
}
