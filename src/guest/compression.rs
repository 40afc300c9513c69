//! Compressed members and files, told apart by their suffix.

use std::io::{self, Read};

/// How a file is packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// Not at all.
    None,
    /// `.gz`
    Gzip,
    /// `.xz`
    Xz,
    /// `.zst`
    Zstd,
}

#[rustfmt::skip]
const SUFFIXES: &[(&str, Compression)] = &[
    (".gz",  Compression::Gzip),
    (".xz",  Compression::Xz),
    (".zst", Compression::Zstd),
];

impl Compression {
    /// The compression that `name`'s suffix stands for, and the name without it.
    #[must_use]
    pub fn of(name: &str) -> (Self, &str) {
        let found = SUFFIXES.iter().find_map(|&(suffix, kind)| Some((kind, name.strip_suffix(suffix)?)));
        found.unwrap_or((Self::None, name))
    }

    /// A reader of the unpacked content.
    ///
    /// # Errors
    /// A header that is not this compression's.
    pub fn reader<'a>(self, packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::None => Box::new(packed),
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(packed)),
            Self::Xz => Box::new(liblzma::read::XzDecoder::new_multi_decoder(packed)),
            Self::Zstd => {
                Box::new(ruzstd::decoding::StreamingDecoder::new(packed).map_err(io::Error::other)?)
            }
        })
    }

    /// The unpacked content, of at most `limit` bytes.
    ///
    /// # Errors
    /// Damaged input, or more content than `limit`.
    pub fn unpack(self, packed: &[u8], limit: u64) -> io::Result<Vec<u8>> {
        read_at_most(self.reader(packed)?, limit)
    }
}

/// All of `from`, unless it is longer than `limit`.
///
/// # Errors
/// The reader's, or `limit` exceeded.
pub fn read_at_most(from: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let read = from.take(limit.saturating_add(1)).read_to_end(&mut content)?;
    if read as u64 > limit {
        return Err(io::Error::other(format!("the content is longer than {limit} bytes")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn suffixes_name_the_compression() {
        assert_eq!(Compression::of("kvm.ko"), (Compression::None, "kvm.ko"));
        assert_eq!(Compression::of("kvm.ko.xz"), (Compression::Xz, "kvm.ko"));
        assert_eq!(Compression::of("data.tar.zst"), (Compression::Zstd, "data.tar"));
        assert_eq!(Compression::of("data.tar.gz"), (Compression::Gzip, "data.tar"));
    }

    #[test]
    fn unpacks_gzip_and_xz_up_to_the_limit() {
        let content = vec![7; 10_000];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&content).unwrap();
        let gzip = gzip.finish().unwrap();
        assert_eq!(Compression::Gzip.unpack(&gzip, 10_000).unwrap(), content);
        assert!(Compression::Gzip.unpack(&gzip, 9_999).is_err());

        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&content).unwrap();
        let xz = xz.finish().unwrap();
        assert_eq!(Compression::Xz.unpack(&xz, 10_000).unwrap(), content);
        assert!(Compression::Xz.unpack(&xz[..xz.len() / 2], 10_000).is_err());
    }

    #[test]
    fn unpacks_zstd() {
        let zst =
            ruzstd::encoding::compress_to_vec(&[7; 500][..], ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(Compression::Zstd.unpack(&zst, 500).unwrap(), [7; 500]);
        assert!(Compression::Zstd.unpack(b"not zstd", 500).is_err());
    }
}
