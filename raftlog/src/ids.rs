//! Random numbers for segment ids: unlikely to repeat in one directory, nothing more is needed.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

pub(crate) struct Ids {
    state: u64,
}

impl Ids {
    /// From the system's randomness (that of std's hash maps), or from a seed.
    pub fn new(seed: Option<u64>) -> Ids {
        let state = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        Ids { state }
    }

    /// The next id: splitmix64.
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.state;
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
