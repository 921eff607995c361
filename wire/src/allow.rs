//! Which types of job may pass: commands or not, and which handlers, by name or by the beginning of a name.
//!
//! The same words for the server's policy, an access token's and a worker's: `command`, `handler`, `handler:resize`,
//! `handler:img.*`.

use std::fmt;

use crate::limits::NAME_BYTES_MAX;

/// The types of job that may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// Commands may.
    pub commands: bool,
    /// Handlers may.
    pub handlers: Handlers,
}

/// The handlers that may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handlers {
    /// Whatever their name.
    All,
    /// Those one of these patterns fits; none, if there is none.
    Only(Vec<Pattern>),
}

/// A handler's name, or the beginning of names if it ends with `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Box<str>);

/// A word that is no type of job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidAllow(String);

impl Default for Allow {
    fn default() -> Self {
        Self::ALL
    }
}

impl Allow {
    /// Everything.
    pub const ALL: Self = Self {
        commands: true,
        handlers: Handlers::All,
    };

    /// Exactly what these words name. No words at all: everything.
    pub fn of_words<S: AsRef<str>>(
        words: impl IntoIterator<Item = S>,
    ) -> Result<Self, InvalidAllow> {
        let mut named = false;
        let mut allow = Self {
            commands: false,
            handlers: Handlers::Only(Vec::new()),
        };
        for word in words {
            named = true;
            match (word.as_ref(), &mut allow.handlers) {
                ("command" | "commands", _) => allow.commands = true,
                ("handler" | "handlers", handlers) => *handlers = Handlers::All,
                (word, handlers) => {
                    let name = word.strip_prefix("handler:").ok_or_else(|| {
                        InvalidAllow(format!(
                            "{word:?} is no type of job: write command, handler, or handler:NAME (NAME may end with *)"
                        ))
                    })?;
                    let pattern = Pattern::new(name)?;
                    if let Handlers::Only(only) = handlers {
                        only.push(pattern);
                    }
                }
            }
        }
        Ok(if named { allow } else { Self::ALL })
    }

    /// The words for it; none for everything.
    pub fn words(&self) -> Vec<String> {
        if *self == Self::ALL {
            return Vec::new();
        }
        let mut words = Vec::new();
        if self.commands {
            words.push("command".to_owned());
        }
        match &self.handlers {
            Handlers::All => words.push("handler".to_owned()),
            Handlers::Only(only) => {
                words.extend(only.iter().map(|pattern| format!("handler:{}", pattern.0)));
            }
        }
        words
    }

    /// Whether a handler of that name may pass.
    pub fn handler(&self, name: &str) -> bool {
        self.handlers.has(name)
    }

    /// Whether no handler may pass, whatever its name.
    pub fn no_handlers(&self) -> bool {
        matches!(&self.handlers, Handlers::Only(only) if only.is_empty())
    }
}

impl Handlers {
    /// Whether one of that name is among them.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(only) => only.iter().any(|pattern| pattern.fits(name)),
        }
    }
}

impl Pattern {
    /// A name, with a `*` at its end or not.
    pub fn new(text: &str) -> Result<Self, InvalidAllow> {
        let name = text.strip_suffix('*').unwrap_or(text);
        let fits = !text.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && !name.contains('*')
            && !name.chars().any(char::is_control);
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(InvalidAllow(format!(
                "{text:?} is no handler's name: 1 to {NAME_BYTES_MAX} bytes, with a * at the end at most"
            )))
        }
    }

    fn fits(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == &*self.0,
        }
    }
}

impl fmt::Display for InvalidAllow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidAllow {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_exactly_what_may_pass() {
        let allow = Allow::of_words(["handler:resize", "handler:img.*"]).unwrap();
        assert!(!allow.commands);
        assert!(allow.handler("resize") && allow.handler("img.") && allow.handler("img.crop"));
        assert!(!allow.handler("resize2") && !allow.handler("im") && !allow.handler(""));
        let allow = Allow::of_words(["command"]).unwrap();
        assert!(allow.commands && allow.no_handlers() && !allow.handler("noop"));
        let allow = Allow::of_words(["handler"]).unwrap();
        assert!(!allow.commands && allow.handler("anything"));
        assert_eq!(Allow::of_words::<&str>([]), Ok(Allow::ALL));
    }

    #[test]
    fn words_come_back_as_they_went() {
        for words in [
            vec![],
            vec!["command"],
            vec!["handler"],
            vec!["command", "handler:a", "handler:b*"],
        ] {
            let allow = Allow::of_words(&words).unwrap();
            assert_eq!(Allow::of_words(allow.words()), Ok(allow), "{words:?}");
        }
    }

    #[test]
    fn a_word_that_is_none_is_told() {
        for wrong in [
            "",
            "cmd",
            "handler:",
            "handler:a*b",
            "handler:**",
            "handler:a\n",
        ] {
            assert!(Allow::of_words([wrong]).is_err(), "{wrong:?}");
        }
    }
}
