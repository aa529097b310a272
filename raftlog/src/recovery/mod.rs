//! From files to a state: the scan, and the table that judges where it stops.

pub(crate) mod scan;
pub(crate) mod table;
