//! Access tokens as text: `hostler_<role>_<id>_<secret><check>`: found by secret scanners, typing errors detected
//! offline, the id safe to print. Making the random bytes is the caller's business.
//!
//! The secret is 32 bytes as a number of 43 base-62 digits, the check is the CRC-32 of all before it as 6 digits. A
//! token has one spelling: what parses prints the same again.

use std::fmt;

/// A parsed access token. `Debug` never shows the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// `admin` or `worker` (more later).
    pub role: String,
    /// Eight base-62 characters that may be logged.
    pub id: String,
    /// What must not be.
    pub secret: [u8; 32],
}

impl Token {
    /// Reads one; the error says what is wrong without repeating the text.
    pub fn parse(text: &str) -> Result<Self, InvalidToken> {
        let rest = text
            .strip_prefix("hostler_")
            .ok_or(InvalidToken("an access token begins with hostler_"))?;
        let mut parts = rest.split('_');
        let (Some(role), Some(id), Some(end), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidToken(
                "an access token has the form hostler_ROLE_ID_SECRET",
            ));
        };
        if role.is_empty()
            || role.len() > ROLE_CHARS_MAX
            || !role.bytes().all(|c| c.is_ascii_lowercase())
        {
            return Err(InvalidToken(
                "the role of an access token is 1 to 16 lower-case letters",
            ));
        }
        if id.len() != ID_CHARS || !id.bytes().all(|c| c.is_ascii_alphanumeric()) {
            return Err(InvalidToken(
                "the id of an access token is 8 letters and digits",
            ));
        }
        if end.len() != SECRET_CHARS + CHECK_CHARS
            || !end.bytes().all(|c| c.is_ascii_alphanumeric())
        {
            return Err(InvalidToken(
                "the secret of an access token is 49 letters and digits",
            ));
        }
        let (checked, check) = text.split_at(text.len() - CHECK_CHARS);
        if check_of(checked) != check.as_bytes() {
            return Err(InvalidToken(
                "the access token is mistyped or cut: its check does not fit",
            ));
        }
        let secret = from_base62(&end.as_bytes()[..SECRET_CHARS])
            .ok_or(InvalidToken("the secret of an access token is above 2^256"))?;
        Ok(Self {
            role: role.to_owned(),
            id: id.to_owned(),
            secret,
        })
    }
}

impl fmt::Display for Token {
    /// The whole token, secret included: for writing it to its file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret: [u8; SECRET_CHARS] = to_base62(self.secret);
        let mut text = format!("hostler_{}_{}_", self.role, self.id);
        text.extend(secret.map(char::from));
        let check = check_of(&text);
        text.extend(check.map(char::from));
        f.write_str(&text)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hostler_{}_{}_…", self.role, self.id)
    }
}

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidToken(pub &'static str);

impl fmt::Display for InvalidToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidToken {}

const ROLE_CHARS_MAX: usize = 16;
const ID_CHARS: usize = 8;
/// 62^43 is the first power above 2^256.
const SECRET_CHARS: usize = 43;
/// 62^6 is the first power above 2^32.
const CHECK_CHARS: usize = 6;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

fn check_of(text: &str) -> [u8; CHECK_CHARS] {
    to_base62(crc32fast::hash(text.as_bytes()).to_be_bytes())
}

/// The big-endian number in `bytes` as exactly `CHARS` digits, highest first.
fn to_base62<const BYTES: usize, const CHARS: usize>(mut bytes: [u8; BYTES]) -> [u8; CHARS] {
    let mut digits = [0; CHARS];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0u16;
        for byte in &mut bytes {
            let value = remainder << 8 | u16::from(*byte);
            *byte = (value / 62).to_le_bytes()[0]; // below 256, since the remainder is below 62
            remainder = value % 62;
        }
        *digit = DIGITS[usize::from(remainder)];
    }
    debug_assert!(
        bytes.iter().all(|byte| *byte == 0),
        "the digits hold the whole number"
    );
    digits
}

/// The big-endian number of these digits, if it fits. Eight digits at once: what they carry from byte to byte fits into
/// 64 bits, and a request shows its token each time (one digit at once took a microsecond).
fn from_base62<const BYTES: usize>(digits: &[u8]) -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    for some in digits.chunks(8) {
        let (mut power, mut carry) = (1u64, 0u64);
        for digit in some {
            let value = VALUES[usize::from(*digit)];
            if value == NO_DIGIT {
                return None;
            }
            power *= 62;
            carry = carry * 62 + u64::from(value);
        }
        for byte in bytes.iter_mut().rev() {
            let product = u64::from(*byte) * power + carry;
            *byte = product.to_le_bytes()[0];
            carry = product >> 8;
        }
        if carry != 0 {
            return None;
        }
    }
    Some(bytes)
}

const NO_DIGIT: u8 = u8::MAX;

/// What each byte is worth as a digit.
const VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0u8;
    while (value as usize) < DIGITS.len() {
        values[DIGITS[value as usize] as usize] = value;
        value += 1;
    }
    values
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(secret: [u8; 32]) -> Token {
        Token {
            role: "worker".to_owned(),
            id: "Ab3dE6gH".to_owned(),
            secret,
        }
    }

    fn with_check(text: &str) -> String {
        format!(
            "{text}{}",
            String::from_utf8(check_of(text).to_vec()).unwrap()
        )
    }

    #[test]
    fn every_secret_has_one_spelling() {
        for secret in [[0; 32], [0xff; 32], [7; 32]] {
            let text = token(secret).to_string();
            assert_eq!(text.len(), "hostler_worker_Ab3dE6gH_".len() + 49);
            assert_eq!(Token::parse(&text), Ok(token(secret)));
        }
    }

    #[test]
    fn a_secret_above_32_bytes_is_refused() {
        let text = with_check(&format!("hostler_worker_Ab3dE6gH_{}", "z".repeat(43)));
        assert_eq!(
            Token::parse(&text),
            Err(InvalidToken("the secret of an access token is above 2^256"))
        );
    }

    #[test]
    fn each_part_has_its_form() {
        let secret = "0".repeat(43);
        for (wrong, why) in [
            (format!("worker_Ab3dE6gH_{secret}"), "begins with hostler_"),
            (format!("hostler_Worker_Ab3dE6gH_{secret}"), "role"),
            (format!("hostler__Ab3dE6gH_{secret}"), "role"),
            (format!("hostler_worker_Ab3dE6g_{secret}"), "id"),
            (format!("hostler_worker_Ab3dE6g-_{secret}"), "id"),
            (format!("hostler_worker_Ab3dE6gH_{secret}0"), "secret"),
            (
                format!("hostler_worker_Ab3dE6gH_é{}", &secret[2..]),
                "secret",
            ),
            (format!("hostler_worker_Ab3dE6gH_x_{secret}"), "form"),
        ] {
            let error = Token::parse(&with_check(&wrong)).unwrap_err();
            assert!(error.0.contains(why), "{wrong}: {error}");
        }
        assert!(Token::parse("").is_err());
    }

    #[test]
    fn printing_for_people_hides_the_secret() {
        assert_eq!(format!("{:?}", token([7; 32])), "hostler_worker_Ab3dE6gH_…");
    }

    proptest! {
        #[test]
        fn any_secret_comes_back(secret: [u8; 32]) {
            prop_assert_eq!(Token::parse(&token(secret).to_string()), Ok(token(secret)));
        }

        #[test]
        fn one_wrong_character_is_noticed(secret: [u8; 32], at in 0usize..73, by in 1u8..62) {
            let text = token(secret).to_string();
            let mut wrong = text.clone().into_bytes();
            let digit = DIGITS.iter().position(|d| *d == wrong[at]);
            prop_assume!(digit.is_some());
            wrong[at] = DIGITS[(digit.unwrap() + usize::from(by)) % 62];
            prop_assert!(Token::parse(std::str::from_utf8(&wrong).unwrap()).is_err());
        }

        #[test]
        fn no_text_hurts_the_parser(text in ".{0,100}") {
            if let Ok(token) = Token::parse(&text) {
                prop_assert_eq!(token.to_string(), text);
            }
        }
    }
}
