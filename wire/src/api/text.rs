//! How ids, states and times stand in JSON.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A wall-clock moment: RFC 3339 in UTC with milliseconds in JSON, milliseconds since 1970 in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, format = DateTime))]
pub struct Timestamp(u64);

impl Timestamp {
    /// So many milliseconds after 1970 began, UTC.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since 1970 began, UTC.
    pub const fn millis(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = i64::try_from(self.0)
            .ok()
            .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        // Beyond the year 9999 there is no RFC 3339; the calendar's last moment stands for it.
        write!(f, "{:.3}", at.unwrap_or(jiff::Timestamp::MAX))
    }
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    /// Any offset is understood; what is finer than a millisecond is dropped.
    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        let at: jiff::Timestamp = text
            .parse()
            .map_err(|error: jiff::Error| InvalidTimestamp(error.to_string()))?;
        match u64::try_from(at.as_millisecond()) {
            Ok(ms) => Ok(Self(ms)),
            Err(_before) => Err(InvalidTimestamp("it lies before 1970".into())),
        }
    }
}

/// A text that is no moment; says why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidTimestamp(String);

impl fmt::Display for InvalidTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "not an RFC 3339 time such as 2026-11-24T09:01:12.345Z: {}",
            self.0
        )
    }
}

impl std::error::Error for InvalidTimestamp {}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?;
        text.0.parse().map_err(de::Error::custom)
    }
}

/// A string, borrowed from the input where it has no escapes.
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }

            fn visit_string<E>(self, text: String) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text)))
            }
        }
        deserializer.deserialize_str(Visit)
    }
}

/// A job id as a JSON number.
pub(super) mod id {
    use super::*;
    use crate::JobId;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(in crate::api) fn serialize<S: Serializer>(id: &JobId, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(id.raw())
    }

    pub(in crate::api) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<JobId, D::Error> {
        JobId::new(u64::deserialize(from)?).ok_or_else(|| de::Error::custom(crate::id::InvalidId))
    }
}

/// A job id that may be missing.
pub(super) mod id_option {
    use super::*;
    use crate::JobId;

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(in crate::api) fn serialize<S: Serializer>(
        id: &Option<JobId>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        id.map(JobId::raw).serialize(to)
    }

    pub(in crate::api) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<JobId>, D::Error> {
        let Some(raw) = Option::<u64>::deserialize(from)? else {
            return Ok(None);
        };
        let id = JobId::new(raw).ok_or_else(|| de::Error::custom(crate::id::InvalidId))?;
        Ok(Some(id))
    }
}

/// A state by its name.
pub(super) mod state {
    use super::*;
    use crate::JobState;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(in crate::api) fn serialize<S: Serializer>(
        state: &JobState,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(state.name())
    }

    pub(in crate::api) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<JobState, D::Error> {
        let text = Text::deserialize(from)?;
        JobState::from_name(&text.0).ok_or_else(|| {
            de::Error::invalid_value(de::Unexpected::Str(&text.0), &"the name of a state")
        })
    }
}

/// Ids and states as schemas: the types themselves are also for those who speak no JSON.
#[cfg(feature = "openapi")]
mod schema {
    use utoipa::openapi::{ObjectBuilder, RefOr, Schema, Type};
    use utoipa::{PartialSchema, ToSchema};

    use crate::{JobId, JobState};

    impl PartialSchema for JobId {
        fn schema() -> RefOr<Schema> {
            let id = ObjectBuilder::new()
                .schema_type(Type::Integer)
                .minimum(Some(JobId::MIN.raw()))
                .maximum(Some(JobId::MAX.raw()));
            id.into()
        }
    }

    impl ToSchema for JobId {}

    impl PartialSchema for JobState {
        fn schema() -> RefOr<Schema> {
            let names = JobState::ALL.iter().map(|state| state.name());
            ObjectBuilder::new()
                .schema_type(Type::String)
                .enum_values(Some(names))
                .into()
        }
    }

    impl ToSchema for JobState {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_shown_in_utc_with_milliseconds_and_read_in_any_offset() {
        let at: Timestamp = "2026-11-24T10:01:12.3456+01:00".parse().unwrap();
        assert_eq!(at.to_string(), "2026-11-24T09:01:12.345Z");
        assert_eq!(
            Timestamp::from_millis(0).to_string(),
            "1970-01-01T00:00:00.000Z"
        );
        assert!("1969-12-31T23:59:59Z".parse::<Timestamp>().is_err());
        assert!("tomorrow".parse::<Timestamp>().is_err());
        assert!("2026-11-24".parse::<Timestamp>().is_err());
    }
}
