//! Access tokens and roles: who may do what.
