//! Sections of documents that a command writes: what stands between `<!-- NAME -->` and `<!-- /NAME -->`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Writes a section anew.
pub fn write_section(path: &Path, name: &str, text: &str) -> Result<()> {
    let place = || path.display().to_string();
    let document = fs::read_to_string(path).with_context(place)?;
    let written = with_section(&document, name, text).with_context(place)?;
    fs::write(path, written).with_context(place)
}

fn with_section(document: &str, name: &str, text: &str) -> Result<String> {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let missing = || format!("no section {name}: it stands between {begin} and {end}");
    let (head, rest) = document.split_once(&begin).with_context(missing)?;
    let (_old, tail) = rest.split_once(&end).with_context(missing)?;
    Ok(format!("{head}{begin}{}\n{end}{tail}", text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_written_anew_and_the_rest_stays() {
        let document = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n";
        let written = with_section(document, "x", "new\n\n").unwrap();
        assert_eq!(written, "a\n<!-- x -->\nnew\n<!-- /x -->\nb\n");
        assert!(with_section(document, "y", "new").is_err());
    }
}
