//! Sizes as people write them.

use bytesize::ByteSize;

/// Reads a number of bytes, for clap: `512MiB` is binary, `512M` decimal.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is no size: write 512MiB, 2G or 65536");
    text.parse::<ByteSize>()
        .map(|size| size.as_u64())
        .or(Err(wrong()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_binary_or_decimal_as_its_unit_says() {
        for (text, bytes) in [
            ("65536", 65_536),
            ("512MiB", 512 << 20),
            ("512M", 512_000_000),
            ("1.5GiB", 3 << 29),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "much", "-1", "1 parsec"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
