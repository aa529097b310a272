//! The outcome of a call as a client sees it: a gRPC code and a message.
//!
//! Clients of etcd recognise errors by the exact message, so every message the server can answer
//! with stands in one table, [`errors`], and handlers name its entries.

use std::borrow::Cow;
use std::fmt;

/// gRPC status codes; the numbers are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Code {
    Ok = 0,
    Canceled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// Every code, in wire order.
    pub const ALL: [Code; 17] = [
        Code::Ok,
        Code::Canceled,
        Code::Unknown,
        Code::InvalidArgument,
        Code::DeadlineExceeded,
        Code::NotFound,
        Code::AlreadyExists,
        Code::PermissionDenied,
        Code::ResourceExhausted,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::OutOfRange,
        Code::Unimplemented,
        Code::Internal,
        Code::Unavailable,
        Code::DataLoss,
        Code::Unauthenticated,
    ];

    /// The CamelCase name used in metric labels and in watch cancel reasons.
    pub fn name(self) -> &'static str {
        match self {
            Code::Ok => "OK",
            Code::Canceled => "Canceled",
            Code::Unknown => "Unknown",
            Code::InvalidArgument => "InvalidArgument",
            Code::DeadlineExceeded => "DeadlineExceeded",
            Code::NotFound => "NotFound",
            Code::AlreadyExists => "AlreadyExists",
            Code::PermissionDenied => "PermissionDenied",
            Code::ResourceExhausted => "ResourceExhausted",
            Code::FailedPrecondition => "FailedPrecondition",
            Code::Aborted => "Aborted",
            Code::OutOfRange => "OutOfRange",
            Code::Unimplemented => "Unimplemented",
            Code::Internal => "Internal",
            Code::Unavailable => "Unavailable",
            Code::DataLoss => "DataLoss",
            Code::Unauthenticated => "Unauthenticated",
        }
    }
}

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The gRPC code.
    pub code: Code,
    /// The exact text a client sees.
    pub message: Cow<'static, str>,
}

impl Status {
    /// A status with a fixed text; usable in constants.
    pub const fn fixed(code: Code, message: &'static str) -> Status {
        Status {
            code,
            message: Cow::Borrowed(message),
        }
    }

    /// A status with a text made at run time.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Status {
        Status {
            code,
            message: message.into(),
        }
    }
}

impl fmt::Display for Status {
    /// grpc-go's rendering, which etcd repeats in watch cancel reasons.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rpc error: code = {} desc = {}",
            self.code.name(),
            self.message
        )
    }
}

impl std::error::Error for Status {}

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident = $code:ident $text:literal;)*) => {
        /// Every error of etcd's table by its short name (`rpctypes.ErrGRPC…` without the prefix).
        #[allow(missing_docs)]
        pub mod errors {
            use super::{Code, Status};
            $($(#[$doc])* pub const $name: Status = Status::fixed(Code::$code, $text);)*
            /// All entries, for tests that walk the table.
            pub const ALL: &[(&str, Status)] = &[$((stringify!($name), $name)),*];
        }
    };
}

table! {
    EMPTY_KEY = InvalidArgument "etcdserver: key is not provided";
    KEY_NOT_FOUND = InvalidArgument "etcdserver: key not found";
    VALUE_PROVIDED = InvalidArgument "etcdserver: value is provided";
    LEASE_PROVIDED = InvalidArgument "etcdserver: lease is provided";
    TOO_MANY_OPS = InvalidArgument "etcdserver: too many operations in txn request";
    DUPLICATE_KEY = InvalidArgument "etcdserver: duplicate key given in txn request";
    INVALID_CLIENT_API_VERSION = InvalidArgument "etcdserver: invalid client api version";
    INVALID_SORT_OPTION = InvalidArgument "etcdserver: invalid sort option";
    COMPACTED = OutOfRange "etcdserver: mvcc: required revision has been compacted";
    FUTURE_REV = OutOfRange "etcdserver: mvcc: required revision is a future revision";
    NO_SPACE = ResourceExhausted "etcdserver: mvcc: database space exceeded";
    LEASE_NOT_FOUND = NotFound "etcdserver: requested lease not found";
    LEASE_EXIST = FailedPrecondition "etcdserver: lease already exists";
    LEASE_TTL_TOO_LARGE = OutOfRange "etcdserver: too large lease TTL";
    WATCH_CANCELED = Canceled "etcdserver: watch canceled";
    MEMBER_EXIST = FailedPrecondition "etcdserver: member ID already exist";
    PEER_URL_EXIST = FailedPrecondition "etcdserver: Peer URLs already exists";
    /// Unknown on the wire: etcd maps it to a type that carries no code.
    MEMBER_NOT_ENOUGH_STARTED = Unknown "etcdserver: re-configuration failed due to not enough started members";
    MEMBER_BAD_URLS = InvalidArgument "etcdserver: given member URLs are invalid";
    MEMBER_NOT_FOUND = NotFound "etcdserver: member not found";
    MEMBER_NOT_LEARNER = FailedPrecondition "etcdserver: can only promote a learner member";
    LEARNER_NOT_READY = FailedPrecondition "etcdserver: can only promote a learner member which is in sync with leader";
    TOO_MANY_LEARNERS = FailedPrecondition "etcdserver: too many learner members in cluster";
    REQUEST_TOO_LARGE = InvalidArgument "etcdserver: request is too large";
    /// Unknown on the wire: etcd maps it to a type that carries no code.
    TOO_MANY_REQUESTS = Unknown "etcdserver: too many requests";
    ROOT_USER_NOT_EXIST = FailedPrecondition "etcdserver: root user does not exist";
    ROOT_ROLE_NOT_EXIST = FailedPrecondition "etcdserver: root user does not have root role";
    USER_ALREADY_EXIST = FailedPrecondition "etcdserver: user name already exists";
    USER_EMPTY = InvalidArgument "etcdserver: user name is empty";
    USER_NOT_FOUND = FailedPrecondition "etcdserver: user name not found";
    ROLE_ALREADY_EXIST = FailedPrecondition "etcdserver: role name already exists";
    ROLE_NOT_FOUND = FailedPrecondition "etcdserver: role name not found";
    ROLE_EMPTY = InvalidArgument "etcdserver: role name is empty";
    AUTH_FAILED = InvalidArgument "etcdserver: authentication failed, invalid user ID or password";
    PERMISSION_NOT_GIVEN = InvalidArgument "etcdserver: permission not given";
    PERMISSION_DENIED = PermissionDenied "etcdserver: permission denied";
    ROLE_NOT_GRANTED = FailedPrecondition "etcdserver: role is not granted to the user";
    PERMISSION_NOT_GRANTED = FailedPrecondition "etcdserver: permission is not granted to the role";
    AUTH_NOT_ENABLED = FailedPrecondition "etcdserver: authentication is not enabled";
    INVALID_AUTH_TOKEN = Unauthenticated "etcdserver: invalid auth token";
    INVALID_AUTH_MGMT = InvalidArgument "etcdserver: invalid auth management";
    AUTH_OLD_REVISION = InvalidArgument "etcdserver: revision of auth store is old";
    NO_LEADER = Unavailable "etcdserver: no leader";
    NOT_LEADER = FailedPrecondition "etcdserver: not leader";
    LEADER_CHANGED = Unavailable "etcdserver: leader changed";
    NOT_CAPABLE = FailedPrecondition "etcdserver: not capable";
    STOPPED = Unavailable "etcdserver: server stopped";
    TIMEOUT = Unavailable "etcdserver: request timed out";
    TIMEOUT_LEADER_FAIL = Unavailable "etcdserver: request timed out, possibly due to previous leader failure";
    TIMEOUT_CONNECTION_LOST = Unavailable "etcdserver: request timed out, possibly due to connection lost";
    TIMEOUT_WAIT_APPLIED = Unavailable "etcdserver: request timed out, waiting for the applied index took too long";
    UNHEALTHY = Unavailable "etcdserver: unhealthy cluster";
    CORRUPT = DataLoss "etcdserver: corrupt cluster";
    NOT_SUPPORTED_FOR_LEARNER = FailedPrecondition "etcdserver: rpc not supported for learner";
    BAD_LEADER_TRANSFEREE = FailedPrecondition "etcdserver: bad leader transferee";
    WRONG_DOWNGRADE_VERSION_FORMAT = InvalidArgument "etcdserver: wrong downgrade target version format";
    INVALID_DOWNGRADE_TARGET_VERSION = InvalidArgument "etcdserver: invalid downgrade target version";
    CLUSTER_VERSION_UNAVAILABLE = FailedPrecondition "etcdserver: cluster version not found during downgrade";
    DOWNGRADE_IN_PROCESS = FailedPrecondition "etcdserver: cluster has a downgrade job in progress";
    NO_INFLIGHT_DOWNGRADE = FailedPrecondition "etcdserver: no inflight downgrade job";
}
