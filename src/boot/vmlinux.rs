//! The executable inside a bzImage, in the compressions that Linux offers.

use super::Problem;
use std::io::Read;

/// How the compressed part begins.
#[rustfmt::skip]
const COMPRESSIONS: &[(&[u8], Unpack)] = &[
    (b"\x02\x21\x4c\x18",   unpack_lz4),
    (b"\xfd7zXZ\0",         |packed, limit| read(liblzma::read::XzDecoder::new(packed), limit)),
    (b"\x28\xb5\x2f\xfd",   unpack_zstd),
    (b"\x1f\x8b",           |packed, limit| read(flate2::read::GzDecoder::new(packed), limit)),
];

type Unpack = fn(&[u8], u64) -> Result<Vec<u8>, Problem>;

/// LZ4's legacy format: the magic number, then blocks of at most 8 MiB, each with its compressed size.
const LZ4_MAGIC_SIZE: usize = 4;
const LZ4_BLOCK_SIZE: usize = 8 << 20;

const CORRUPT: Problem = Problem::Corrupt("its compressed part does not unpack");

/// Unpacks to at most `limit` bytes. `None` if the compression is not known, which is the decompressor's job then.
pub fn unpack(packed: &[u8], limit: u64) -> Result<Option<Vec<u8>>, Problem> {
    let known = COMPRESSIONS.iter().find(|(magic, _)| packed.starts_with(magic));
    known.map(|(_, unpack)| unpack(packed, limit)).transpose()
}

fn read(unpacked: impl Read, limit: u64) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    unpacked.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|_| CORRUPT)?;
    check_size(&bytes, limit)?;
    Ok(bytes)
}

fn check_size(bytes: &[u8], limit: u64) -> Result<(), Problem> {
    if bytes.len() as u64 > limit {
        Err(Problem::Corrupt("it unpacks to more than guest memory"))
    } else {
        Ok(())
    }
}

fn unpack_zstd(packed: &[u8], limit: u64) -> Result<Vec<u8>, Problem> {
    read(ruzstd::decoding::StreamingDecoder::new(packed).map_err(|_| CORRUPT)?, limit)
}

/// The blocks end where the build has appended the size of all that is unpacked.
fn unpack_lz4(packed: &[u8], limit: u64) -> Result<Vec<u8>, Problem> {
    let mut rest = &packed[LZ4_MAGIC_SIZE..];
    let mut bytes = Vec::new();
    loop {
        let (size, blocks) = rest.split_first_chunk().ok_or(CORRUPT)?;
        let size = u32::from_le_bytes(*size) as usize;
        if blocks.is_empty() {
            return if size == bytes.len() { Ok(bytes) } else { Err(CORRUPT) };
        }
        let block = blocks.get(..size).ok_or(CORRUPT)?;
        unpack_block(block, &mut bytes)?;
        check_size(&bytes, limit)?;
        rest = &blocks[size..];
    }
}

fn unpack_block(block: &[u8], bytes: &mut Vec<u8>) -> Result<(), Problem> {
    let start = bytes.len();
    bytes.resize(start + LZ4_BLOCK_SIZE, 0);
    let length = lz4_flex::block::decompress_into(block, &mut bytes[start..]).map_err(|_| CORRUPT)?;
    bytes.truncate(start + length);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn content() -> Vec<u8> {
        (0..100_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect()
    }

    fn gzip() -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(&content()).expect("memory");
        writer.finish().expect("memory")
    }

    fn xz() -> Vec<u8> {
        let mut writer = liblzma::write::XzEncoder::new(Vec::new(), 0);
        writer.write_all(&content()).expect("memory");
        [writer.finish().expect("memory"), 400_000u32.to_le_bytes().to_vec()].concat()
    }

    fn zstd() -> Vec<u8> {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        [ruzstd::encoding::compress_to_vec(&content()[..], level), 400_000u32.to_le_bytes().to_vec()].concat()
    }

    /// Two blocks of literals: tokens with an extended length.
    fn lz4() -> Vec<u8> {
        let mut packed = b"\x02\x21\x4c\x18".to_vec();
        for half in content().chunks(200_000) {
            let mut block = vec![0xf0];
            block.extend(std::iter::repeat_n(255, (half.len() - 15) / 255));
            block.push(((half.len() - 15) % 255) as u8);
            block.extend(half);
            packed.extend((block.len() as u32).to_le_bytes());
            packed.extend(block);
        }
        packed.extend(400_000u32.to_le_bytes());
        packed
    }

    #[test]
    fn every_compression_unpacks() {
        for packed in [gzip(), xz(), zstd(), lz4()] {
            assert_eq!(unpack(&packed, 400_000), Ok(Some(content())));
            assert!(unpack(&packed, 399_999).is_err(), "more than the limit");
            assert!(unpack(&packed[..packed.len() / 2], 400_000).is_err(), "truncated");
        }
    }

    #[test]
    fn what_is_not_known_is_left_alone() {
        for packed in [&b""[..], b"LZO?", b"\x5d\0\0", b"BZh9"] {
            assert_eq!(unpack(packed, 1000), Ok(None));
        }
    }
}
