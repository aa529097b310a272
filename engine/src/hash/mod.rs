//! Hashes over contents: etcd's HashKV, and the rolling hash of applied history.

mod combine;
pub(crate) mod kv;
pub(crate) mod rolling;
