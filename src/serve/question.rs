//! The question that a request to `/health` asks: its query. Whatever is not understood is refused with a sentence, so
//! that a checker with a typing error is never answered by another age than it asked for.

use std::time::Duration;

use url::form_urlencoded;

/// How old data may be for whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedAge {
    /// As each export has it.
    OfExport,
    /// The same for all exports, as the request says.
    AtMost(Duration),
}

impl AllowedAge {
    /// From the query of a URL; the error is for the person who wrote it.
    pub fn parse(query: Option<&str>) -> Result<Self, &'static str> {
        let mut allowed = Self::OfExport;
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if name != "max_age" {
                return Err("max_age is the only parameter, as in /health?max_age=90m");
            }
            if allowed != Self::OfExport {
                return Err("max_age is given more than once");
            }
            let max_age = humantime::parse_duration(&value).ok().filter(|max_age| !max_age.is_zero());
            allowed = Self::AtMost(max_age.ok_or("max_age is not a duration longer than zero, such as 90m or 2h 30m")?);
        }
        Ok(allowed)
    }

    pub fn max_age(self, of_export: Duration) -> Duration {
        match self {
            Self::OfExport => of_export,
            Self::AtMost(max_age) => max_age,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_understood_as_in_the_configuration() {
        assert_eq!(AllowedAge::parse(None), Ok(AllowedAge::OfExport));
        assert_eq!(AllowedAge::parse(Some("")), Ok(AllowedAge::OfExport));
        assert_eq!(AllowedAge::parse(Some("max_age=90m")), Ok(AllowedAge::AtMost(Duration::from_mins(90))));
        assert_eq!(AllowedAge::parse(Some("max_age=1h+30m")), Ok(AllowedAge::AtMost(Duration::from_mins(90))));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for query in ["max_age=", "max_age=90", "max_age=soon", "max_age=0s", "max_age=-1m", "max_age"] {
            assert!(AllowedAge::parse(Some(query)).unwrap_err().contains("not a duration"), "{query}");
        }
        assert!(AllowedAge::parse(Some("maxage=90m")).unwrap_err().contains("only parameter"));
        assert!(AllowedAge::parse(Some("max_age=1h&max_age=2h")).unwrap_err().contains("more than once"));
    }
}
