//! What may go wrong with one call.

use std::io;

/// What kind of call is about to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    Read,
    Create,
    Rename,
    Unlink,
    SyncDir,
    Write,
    /// A write that is durable when it returns.
    WriteDsync,
    SyncData,
    SetLen,
}

/// A call, as shown to the function given to `Disk::fail_when`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The step's number; for a read, the number of steps before it.
    pub step: u64,
    pub kind: OpKind,
    /// The file's or directory's name (for a rename the old one).
    pub path: String,
    /// Byte offset of a read or write, new length of a `SetLen`, else 0.
    pub offset: u64,
    /// Bytes asked for by a read or write, else 0.
    pub len: usize,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `EIO`. A write may have reached any part of its range; a sync leaves pages clean though
    /// only a part of them is durable.
    Eio,
    /// `ENOSPC`, nothing done.
    Enospc,
    /// A write or read of at most this many bytes; other calls are not affected.
    Short(usize),
    /// The call reports success and does nothing: a lost write, a sync that lies.
    Lost,
    /// A write lands at this offset instead and reports success; other calls are not affected.
    Misdirected(u64),
}

pub(crate) fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

pub(crate) fn enospc() -> io::Error {
    io::Error::from_raw_os_error(28)
}

pub(crate) fn down() -> io::Error {
    io::Error::other("simulated disk is down")
}
