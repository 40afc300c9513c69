//! A writer of the archive that Linux unpacks as its initramfs: cpio's "new ASCII" format.
//! Linux, Documentation/driver-api/early-userspace/buffer-format.rst.

use std::fmt::Write as _;

/// File types as in `st_mode`. inode(7).
mod kind {
    pub(super) const CHARACTER_DEVICE: u32 = 0o020_000;
    pub(super) const DIRECTORY: u32 = 0o040_000;
    pub(super) const REGULAR: u32 = 0o100_000;
    pub(super) const SYMLINK: u32 = 0o120_000;
}

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const ALIGNMENT: usize = 4;

/// An archive in the making. Owners are root and times 0, so that equal content gives equal bytes.
#[derive(Default)]
pub struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

struct Entry<'a> {
    path: &'a str,
    mode: u32,
    device: (u32, u32),
    content: &'a [u8],
}

impl Cpio {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
    /// Adds a directory; parents come first.
    #[must_use]
    pub fn directory(self, path: &str) -> Self {
        self.add(&Entry { path, mode: kind::DIRECTORY | 0o755, device: (0, 0), content: &[] })
    }
    /// Adds a regular file.
    #[must_use]
    pub fn file(self, path: &str, permissions: u32, content: &[u8]) -> Self {
        self.add(&Entry { path, mode: kind::REGULAR | permissions, device: (0, 0), content })
    }
    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.add(&Entry { path, mode: kind::SYMLINK | 0o777, device: (0, 0), content: target.as_bytes() })
    }
    /// Adds a character device.
    #[must_use]
    pub fn character_device(self, path: &str, major: u32, minor: u32) -> Self {
        self.add(&Entry { path, mode: kind::CHARACTER_DEVICE | 0o600, device: (major, minor), content: &[] })
    }
    /// The finished archive.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.add(&Entry { path: TRAILER, mode: 0, device: (0, 0), content: &[] }).bytes
    }

    fn add(mut self, entry: &Entry<'_>) -> Self {
        self.entries += 1;
        let size = u32::try_from(entry.content.len()).expect("a file of an initramfs is shorter than 4 GiB");
        let name_size = u32::try_from(entry.path.len() + 1).expect("a path is short");
        let (major, minor) = entry.device;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [self.entries, entry.mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        let mut header = String::from(MAGIC);
        for field in fields {
            write!(header, "{field:08x}").expect("a String takes all");
        }
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(entry.path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(entry.content);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_header_a_name_and_content_each_aligned() {
        let archive = Cpio::new().file("init", 0o755, b"hello").finish();
        let header = "070701\
            00000001000081ed00000000000000000000000100000000\
            0000000500000000000000000000000000000000\
            0000000500000000";
        assert_eq!(&archive[..110], header.as_bytes());
        assert_eq!(&archive[110..116], b"init\0\0", "name, NUL, padded to 116");
        assert_eq!(&archive[116..124], b"hello\0\0\0");
        assert_eq!(&archive[124..130], b"070701");
        assert_eq!(&archive[124 + 110..124 + 121], b"TRAILER!!!\0");
        assert_eq!(archive.len() % 4, 0);
    }

    #[test]
    fn a_device_node_has_its_numbers() {
        let archive = Cpio::new().character_device("dev/console", 5, 1).finish();
        assert_eq!(&archive[14..22], b"00002180");
        assert_eq!(&archive[78..94], b"0000000500000001");
    }

    #[test]
    fn equal_content_gives_equal_bytes() {
        let build = || Cpio::new().directory("bin").symlink("bin/sh", "busybox").finish();
        assert_eq!(build(), build());
    }
}
