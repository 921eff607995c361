//! Errors as RFC 9457 problems, and the taking apart of a shape's error.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The body of every error answer (`application/problem+json`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// A URI that names the kind of problem; `about:blank` where the code says it all.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The status in words.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// One sentence: the thing, the limit, the way out.
    #[serde(default)]
    pub detail: String,
    /// The path that was asked for.
    #[serde(default)]
    pub instance: String,
    /// Stable, snake_case: what programs look at.
    #[serde(default)]
    pub code: String,
    /// Of the request.
    #[serde(default)]
    pub request_id: String,
    /// Which fields, if it was about fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

/// What is wrong with one field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FieldError {
    /// A JSON pointer into the body (`/17/retry/max_attempts`), or `?name` for a query parameter.
    pub pointer: String,
    /// What is wrong, and what would be right.
    pub detail: String,
    /// The line of an `application/x-ndjson` body, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if self.pointer.is_empty() {
            f.write_str(&self.detail)
        } else {
            write!(f, "{}: {}", self.pointer, self.detail)
        }
    }
}

/// An error of reading a shape, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeError {
    /// Where in the document; empty = the document itself.
    pub pointer: String,
    /// What is wrong.
    pub detail: String,
    /// Where the reader stood, from 1; 0 if it does not know.
    pub line: usize,
    /// As `line`.
    pub column: usize,
}

impl From<&serde_json::Error> for ShapeError {
    fn from(error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let (line, column) = (error.line(), error.column());
        let text = text
            .strip_suffix(&format!(" at line {line} column {column}"))
            .unwrap_or(&text);
        let (pointer, detail) = match text.split_once(": ") {
            Some((pointer, detail)) if pointer.starts_with('/') => (pointer, detail),
            _ => ("", text),
        };
        Self {
            pointer: pointer.to_owned(),
            detail: detail.to_owned(),
            line,
            column,
        }
    }
}
