//! Debian packages, unpacked in this process: an `ar` archive with a compressed tarball inside. deb(5).

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Component;

use super::compression::{Compression, read_at_most};

/// The longest file taken out of a package. A kernel is a tenth of that.
const FILE_LIMIT: u64 = 256 << 20;

/// Regular files by their path, without a leading `./` or `/`.
pub type Files = BTreeMap<String, Vec<u8>>;

/// The regular files of the package whose path `wanted` accepts.
///
/// # Errors
/// What does not follow the format, or is damaged.
pub fn files(package: impl Read, wanted: impl Fn(&str) -> bool) -> io::Result<Files> {
    let mut archive = ar::Archive::new(package);
    while let Some(member) = archive.next_entry() {
        let member = member?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        let (compression, plain) = Compression::of(name.trim_end_matches('/'));
        if plain == "data.tar" {
            return files_of_tarball(compression.reader(member)?, wanted);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "no member data.tar, data.tar.gz, data.tar.xz or data.tar.zst",
    ))
}

fn files_of_tarball(tarball: impl Read, wanted: impl Fn(&str) -> bool) -> io::Result<Files> {
    let mut found = Files::new();
    for entry in tar::Archive::new(tarball).entries()? {
        let entry = entry?;
        let path = plain_path(&entry.path()?);
        if entry.header().entry_type().is_file() && wanted(&path) {
            found.insert(path, read_at_most(entry, FILE_LIMIT)?);
        }
    }
    Ok(found)
}

fn plain_path(path: &std::path::Path) -> String {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
    });
    names.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn tarball(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, *content).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn package(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = ar::Builder::new(Vec::new());
        for (name, content) in members {
            let header = ar::Header::new(name.as_bytes().to_vec(), content.len() as u64);
            archive.append(&header, *content).unwrap();
        }
        archive.into_inner().unwrap()
    }

    fn xz(content: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn takes_the_wanted_files_whatever_the_compression() {
        let tar = tarball(&[("./boot/vmlinuz-6.1", b"kernel"), ("./usr/share/doc/copyright", b"text")]);
        let zst = ruzstd::encoding::compress_to_vec(&tar[..], ruzstd::encoding::CompressionLevel::Fastest);
        for (name, data) in [("data.tar", tar.clone()), ("data.tar.xz", xz(&tar)), ("data.tar.zst", zst)] {
            let deb = package(&[
                ("debian-binary", b"2.0\n"),
                ("control.tar.xz", &xz(&tarball(&[]))),
                (name, &data),
            ]);
            let found = files(&deb[..], |path| path.starts_with("boot/")).unwrap();
            assert_eq!(found, Files::from([("boot/vmlinuz-6.1".to_owned(), b"kernel".to_vec())]), "{name}");
        }
    }

    #[test]
    fn refuses_what_is_no_package() {
        assert!(files(&b"<html>not found</html>"[..], |_| true).is_err());
        assert!(files(&package(&[("debian-binary", b"2.0\n")])[..], |_| true).is_err());
        let whole = package(&[("data.tar.xz", &xz(&tarball(&[("./a", &[1; 5000])])))]);
        assert!(files(&whole[..whole.len() / 2], |_| true).is_err());
    }
}
