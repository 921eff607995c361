//! A handler's result that is too long is named, not carried: finished work is not redone for the length of its answer
//! (semantics 24; rule 11 in `PROTOCOL.md`).

use sha2::{Digest, Sha256};

/// The shortest and the longest text that names a result.
const NAMED_BYTES: std::ops::RangeInclusive<usize> = 100..=200;

/// The result, or its length and digest if it is longer than that.
pub fn bounded(result: Vec<u8>, bytes_max: usize) -> Vec<u8> {
    if result.len() <= bytes_max {
        return result;
    }
    let sha256: String = Sha256::digest(&result)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let bytes = result.len();
    format!(r#"{{"too_large":true,"bytes":{bytes},"sha256":"{sha256}"}}"#).into_bytes()
}

/// Whether a result only names another one. Whoever wrote it may have put its members in another order.
pub fn is_named(result: &[u8]) -> bool {
    let has = |name: &[u8]| result.windows(name.len()).any(|window| window == name);
    NAMED_BYTES.contains(&result.len()) && has(br#""too_large""#) && has(br#""sha256""#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_longer_than_it_may_be_is_named_and_known_as_that() {
        let long = vec![b'7'; 1_000];
        assert_eq!(bounded(long.clone(), 1_000), long);
        let named = bounded(long.clone(), 999);
        let text = std::str::from_utf8(&named).unwrap();
        assert!(
            text.starts_with(r#"{"too_large":true,"bytes":1000,"sha256":""#),
            "{text}"
        );
        assert!(is_named(&named) && is_named(&bounded(vec![b'7'; 4 << 20], 0)));
        assert!(is_named(&bounded(vec![b'7'], 0)));
        assert!(!is_named(&long) && !is_named(b"{}") && !is_named(&[b' '; 150]));
    }
}
