//! Opens, recovers, spawns in order, stops in reverse; the only file that sees every part.
