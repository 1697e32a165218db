//! Which partition a key belongs to, as Java's producer and Kafka Streams decide it.

/// 32-bit murmur2 with Kafka's seed (`org.apache.kafka.common.utils.Utils.murmur2`). Java's signed result has the
/// same bits.
pub fn murmur2(key: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;

    let mut hash = SEED ^ key.len() as u32;
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// The partition of `key` in a topic of `count` partitions: what Java's default partitioner and librdkafka's
/// `murmur2_random` pick for a record that has a key.
///
/// # Panics
/// If `count` is not positive.
pub fn partition_for(key: &[u8], count: i32) -> i32 {
    assert!(count > 0, "a topic has at least one partition");
    // Kafka clears the sign bit rather than taking the absolute value.
    (murmur2(key) & 0x7fff_ffff) as i32 % count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values_of_java() {
        // From the test of org.apache.kafka.common.utils.Utils; many more are in vectors/partitions.json.
        for (key, hash) in [("21", -973_932_308), ("foobar", -790_332_482), ("a-little-bit-long-string", -985_981_536)]
        {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash);
        }
    }

    proptest! {
        #[test]
        fn every_key_has_a_partition(key in prop::collection::vec(any::<u8>(), 0..300), count in 1..=i32::MAX) {
            prop_assert!((0..count).contains(&partition_for(&key, count)));
        }
    }
}
