//! The two tokens the first start makes: files of the data directory, readable by their owner only.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use hostler_wire::token::{InvalidToken, Token};

use super::{AuthError, Role};

/// Reads that file's token, or makes one.
pub(super) fn load_or_make(dir: &Path, name: &str, role: Role) -> Result<Token, AuthError> {
    let path = dir.join(name);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let token = make(role).map_err(AuthError::Random)?;
            let kept = keep(dir, &path, &token);
            return kept.map_or_else(|error| Err(AuthError::File { path, error }), |()| Ok(token));
        }
        Err(error) => return Err(AuthError::File { path, error }),
    };
    if let Ok(about) = fs::metadata(&path)
        && about.permissions().mode() & 0o077 != 0
    {
        tracing::warn!(path = %path.display(), "others than its owner may read this access token");
    }
    match Token::parse(text.trim()) {
        Ok(token) if token.role == role.name() => Ok(token),
        Ok(token) => {
            let why = format!(
                "it holds a token for {}, not for {}",
                token.role,
                role.name()
            );
            Err(AuthError::Content { path, why })
        }
        Err(InvalidToken(why)) => Err(AuthError::Content {
            path,
            why: why.into(),
        }),
    }
}

/// Makes a token of random bytes.
pub(super) fn make(role: Role) -> Result<Token, getrandom::Error> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)?;
    let mut id = String::new();
    while id.len() < 8 {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        // Bytes above the last multiple of 62 are left out, so that every letter is as likely.
        let fair = bytes.iter().filter(|byte| **byte < 248);
        id.extend(fair.map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])));
    }
    id.truncate(8);
    Ok(Token {
        role: role.name().to_owned(),
        id,
        secret,
    })
}

const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Writes the token beside its place and moves it there: a crash leaves a whole file or none.
fn keep(dir: &Path, path: &Path, token: &Token) -> io::Result<()> {
    let fresh = path.with_extension("token.new");
    match fs::remove_file(&fresh) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    writeln!(file, "{token}")?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(dir)?.sync_all()
}
