//! Names of fields, read strictly: unknown ones are told the nearest known one, and every error carries its pointer.

use std::fmt;

use serde::de;

/// Defines an enum of an object's field names, which reads one from JSON or says what was probably meant.
macro_rules! fields {
    ($name:ident { $($variant:ident = $text:literal,)+ }) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum $name { $($variant,)+ }

        impl $name {
            const NAMES: &'static [&'static str] = &[$($text,)+];

            const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// Marks the field in `seen`; an error if it was there already.
            fn once<E: serde::de::Error>(self, seen: &mut u64) -> Result<(), E> {
                let bit = 1 << self as u64;
                if *seen & bit != 0 {
                    return Err(E::custom(format_args!("/{}: given twice", self.name())));
                }
                *seen |= bit;
                Ok(())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visit;
                impl serde::de::Visitor<'_> for Visit {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("a field name")
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        match text {
                            $($text => Ok($name::$variant),)+
                            _ => Err($crate::api::fields::unknown(text, $name::NAMES)),
                        }
                    }
                }
                deserializer.deserialize_identifier(Visit)
            }
        }
    };
}
pub(super) use fields;

/// The error for a field nobody knows.
pub(super) fn unknown<E: de::Error>(name: &str, known: &'static [&'static str]) -> E {
    let pointer = Token(name);
    match nearest(name, known) {
        Some(near) => E::custom(format_args!(
            "/{pointer}: unknown field, did you mean `{near}`?"
        )),
        None => E::custom(format_args!("/{pointer}: unknown field")),
    }
}

/// Puts a name in front of the pointer an error carries.
pub(super) fn at<T, E: de::Error>(name: impl fmt::Display, value: Result<T, E>) -> Result<T, E> {
    value.map_err(|error| {
        let text = error.to_string();
        let between = if text.starts_with('/') { "" } else { ": " };
        // serde_json recognises the position at the end of a message and keeps it.
        E::custom(format_args!("/{name}{between}{text}"))
    })
}

/// One token of a JSON pointer, escaped as RFC 6901 says, and not too long to be shown.
pub(super) struct Token<'a>(pub(super) &'a str);

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, c) in self.0.chars().enumerate() {
            match c {
                _ if n == 64 => return f.write_str("…"),
                '~' => f.write_str("~0")?,
                '/' => f.write_str("~1")?,
                c if c.is_control() => write!(f, "{}", c.escape_unicode())?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

/// The known word that was probably meant, if one is near enough: a third of its letters may differ.
pub fn nearest(word: &str, known: &[&'static str]) -> Option<&'static str> {
    if word.len() > 64 {
        return None;
    }
    known
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        .filter(|(far, candidate)| *far <= candidate.len().div_ceil(3))
        .min_by_key(|(far, _)| *far)
        .map(|(_, candidate)| candidate)
}

/// How many letters must be added, dropped, changed or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = changed.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_its_word_and_nonsense_does_not() {
        let known = &["retry", "queue", "timeout_ms"];
        assert_eq!(nearest("retrys", known), Some("retry"));
        assert_eq!(nearest("queeu", known), Some("queue"));
        assert_eq!(nearest("timeout", known), Some("timeout_ms"));
        assert_eq!(nearest("Queue", known), Some("queue"));
        assert_eq!(nearest("xyzzy", known), None);
        assert_eq!(nearest(&"q".repeat(100_000), known), None);
    }

    #[test]
    fn a_pointer_token_is_escaped_and_bounded() {
        assert_eq!(Token("a/b~c\n").to_string(), "a~1b~0c\\u{a}");
        assert!(Token(&"x".repeat(1_000)).to_string().len() < 80);
    }
}
