//! Joining CRC-32C values of adjacent pieces without their bytes.
//!
//! The CRC of `a ++ b` is the CRC of `a` shifted by `len(b)` zero bytes, xor the CRC of `b`.
//! Shifting is a multiplication by `x^(8 len)` modulo the polynomial, over GF(2); the factor of
//! each length is kept, since records of a store have few different lengths.

/// Castagnoli's polynomial, bit-reflected; bit 31 is the coefficient of x^0.
const POLY: u32 = 0x82f6_3b78;
const ONE: u32 = 1 << 31;

/// Product of two reflected polynomials modulo `POLY`.
fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = ONE;
    while bit != 0 {
        product ^= b & 0u32.wrapping_sub(u32::from(a & bit != 0));
        b = (b >> 1) ^ (POLY & 0u32.wrapping_sub(b & 1));
        bit >>= 1;
    }
    product
}

/// Joins checksums, remembering the factors of short lengths.
pub(crate) struct Combiner {
    /// `x^(8 * 2^k)`.
    powers: [u32; 64],
    /// Factor by length; 0 when not computed yet (no factor is 0).
    factors: Vec<u32>,
}

impl Combiner {
    pub(crate) fn new() -> Combiner {
        let mut powers = [0; 64];
        let mut power = ONE >> 8;
        for slot in &mut powers {
            *slot = power;
            power = multiply(power, power);
        }
        Combiner {
            powers,
            factors: vec![0; 8192],
        }
    }

    fn factor(&mut self, len: u64) -> u32 {
        let short = usize::try_from(len)
            .ok()
            .filter(|n| *n < self.factors.len());
        if let Some(known) = short.map(|n| self.factors[n]).filter(|f| *f != 0) {
            return known;
        }
        let mut factor = ONE;
        for (k, power) in self.powers.iter().enumerate() {
            if len >> k & 1 == 1 {
                factor = multiply(factor, *power);
            }
        }
        if let Some(n) = short {
            self.factors[n] = factor;
        }
        factor
    }

    /// The CRC of `first ++ second`, the second being `len` bytes long.
    pub(crate) fn join(&mut self, first: u32, second: u32, len: u64) -> u32 {
        multiply(self.factor(len), first) ^ second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_equals_hashing_the_whole() {
        let bytes: Vec<u8> = (0..40_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        let whole = crc32c::crc32c(&bytes);
        let mut combiner = Combiner::new();
        for cut in [0, 1, 2, 255, 8191, 8192, 39_999, 40_000, 1] {
            let (a, b) = bytes.split_at(cut);
            let joined = combiner.join(crc32c::crc32c(a), crc32c::crc32c(b), b.len() as u64);
            assert_eq!(joined, whole, "cut at {cut}");
        }
    }
}
