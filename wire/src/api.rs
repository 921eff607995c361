//! The JSON shapes of HTTP: what is asked, what is answered, what went wrong. Knows no caller and no database.
