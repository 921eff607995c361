//! The table of access tokens: its rows, written and read.

use std::sync::Arc;

use hostler_engine::WallTime;
use hostler_wire::Allow;
use rusqlite::{Connection, Row};

use crate::auth::{Proof, Role, TokenChange, TokenRecord};
use crate::store::load::each_row;
use crate::store::sql;
use crate::store::sqlite::{Fault, int};

/// Writes what became of them, within a transaction.
pub(super) fn change(db: &Connection, changes: &[TokenChange]) -> Result<(), Fault> {
    for change in changes {
        match change {
            TokenChange::New(record) => insert(db, record)?,
            TokenChange::Revoked { id, at } => {
                db.prepare_cached(sql::TOKEN_REVOKED)?
                    .execute((&**id, int(at.millis())))?;
            }
            TokenChange::Used { id, at } => {
                db.prepare_cached(sql::TOKEN_USED)?
                    .execute((&**id, int(at.millis())))?;
            }
        }
    }
    Ok(())
}

fn insert(db: &Connection, record: &TokenRecord) -> Result<(), Fault> {
    let (digest, stored_key, server_key) = match record.proof {
        Proof::Digest(digest) => (Some(digest), None, None),
        Proof::Scram {
            stored_key,
            server_key,
        } => (None, Some(stored_key), Some(server_key)),
    };
    let ms = |at: Option<WallTime>| at.map(|at| int(at.millis()));
    db.prepare_cached(sql::TOKEN_NEW)?.execute((
        &*record.id,
        record.role.name(),
        record.name.as_deref(),
        digest,
        stored_key,
        server_key,
        json(&record.queues),
        json(&record.allow.words()),
        record.requests_per_second,
        record.jobs_per_second,
        ms(record.created).unwrap_or(0),
        &*record.created_by,
        ms(record.expires),
    ))?;
    Ok(())
}

/// All of them.
pub(super) fn read(db: &Connection) -> Result<Vec<TokenRecord>, Fault> {
    let mut all = Vec::new();
    each_row(db, sql::TOKENS, [], |row| {
        all.push(record(row)?);
        Ok(())
    })?;
    Ok(all)
}

fn record(row: &Row<'_>) -> Result<TokenRecord, Fault> {
    let id: String = row.get(0)?;
    let garbled = |what: &str| Fault::Garbled(format!("access token {id}: {what}"));
    let role: String = row.get(1)?;
    let role = Role::from_name(&role).ok_or_else(|| garbled("no such role"))?;
    let proof = match (role, row.get(3)?, row.get(4)?, row.get(5)?) {
        (Role::Worker, None, Some(stored_key), Some(server_key)) => Proof::Scram {
            stored_key,
            server_key,
        },
        (Role::Admin | Role::Submit | Role::Read, Some(digest), None, None) => {
            Proof::Digest(digest)
        }
        _ => return Err(garbled("what it is checked by does not fit its role")),
    };
    let words: Vec<String> =
        from_json(&row.get::<_, String>(7)?).ok_or_else(|| garbled("its types of job"))?;
    let time = |column| -> Result<Option<WallTime>, Fault> {
        let ms: Option<u64> = row.get(column)?;
        Ok(ms.map(WallTime::from_millis))
    };
    Ok(TokenRecord {
        role,
        name: row.get::<_, Option<String>>(2)?.map(String::into_boxed_str),
        proof,
        queues: from_json(&row.get::<_, String>(6)?).ok_or_else(|| garbled("its queues"))?,
        allow: Allow::of_words(words).map_err(|error| garbled(&error.to_string()))?,
        requests_per_second: row.get(8)?,
        jobs_per_second: row.get(9)?,
        created: time(10)?,
        created_by: row.get::<_, String>(11)?.into(),
        expires: time(12)?,
        revoked: time(13)?,
        used: time(14)?,
        id: Arc::from(id),
    })
}

fn json<T: serde::Serialize>(list: &[T]) -> String {
    serde_json::to_string(list).expect("a list of strings is JSON")
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}
