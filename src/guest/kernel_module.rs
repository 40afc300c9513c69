//! Kernel modules: their names, what they depend on, and the order in which to load them.

use std::collections::BTreeMap;

use super::GuestError;
use super::compression::Compression;

/// The module that makes L1 a hypervisor.
pub const KVM_INTEL: &str = "kvm_intel";
/// The longest module unpacked.
const MODULE_LIMIT: u64 = 64 << 20;
/// More dependencies than this are a loop in a damaged file.
const DEPTH_LIMIT: usize = 32;

/// A module, unpacked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KernelModule {
    /// Its name as in `/proc/modules`: `kvm_intel`.
    pub name: String,
    /// The `.ko` file.
    pub bytes: Vec<u8>,
}

/// The name of the module in the file at `path`, if it is one: `…/kvm-intel.ko.xz` holds `kvm_intel`.
#[must_use]
pub fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (_, plain) = Compression::of(file);
    Some(plain.strip_suffix(".ko")?.replace('-', "_"))
}

/// Is the file at `path` KVM's for Intel, or one that it may depend on?
#[must_use]
pub fn may_be_needed(path: &str) -> bool {
    ["/kernel/arch/x86/kvm/", "/kernel/virt/", "/updates/"].iter().any(|part| path.contains(part))
        && name_of(path).is_some()
}

/// What each module depends on, by name; from modules.dep(5).
#[must_use]
pub fn dependencies(modules_dep: &str) -> BTreeMap<String, Vec<String>> {
    let rows = modules_dep.lines().filter_map(|line| {
        let (path, needs) = line.split_once(':')?;
        Some((name_of(path)?, needs.split_whitespace().filter_map(name_of).collect()))
    });
    rows.collect()
}

/// What a module says it depends on: `depends=` in its `.modinfo` section. Debian's packages have no modules.dep;
/// depmod makes it from these entries on installation.
#[must_use]
pub fn declared_dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let names = value.split(|&byte| byte == b',').filter(|name| !name.is_empty());
    names.map(|name| String::from_utf8_lossy(name).replace('-', "_")).collect()
}

/// Unpacks [`KVM_INTEL`] and all that it depends on from `files` (path to content, compressed or not), in the order in
/// which to load them. What depends on what is read from `modules_dep` if there is one, else from the modules.
///
/// # Errors
/// A module that is missing or damaged.
pub fn load_order(
    files: &BTreeMap<String, Vec<u8>>,
    modules_dep: Option<&str>,
) -> Result<Vec<KernelModule>, GuestError> {
    let by_name =
        files.iter().filter_map(|(path, content)| Some((name_of(path)?, (path.as_str(), &content[..]))));
    let mut order =
        Order { files: by_name.collect(), table: modules_dep.map(dependencies), loaded: Vec::new() };
    order.add(KVM_INTEL, 0)?;
    Ok(order.loaded)
}

struct Order<'a> {
    files: BTreeMap<String, (&'a str, &'a [u8])>,
    table: Option<BTreeMap<String, Vec<String>>>,
    loaded: Vec<KernelModule>,
}

impl Order<'_> {
    fn add(&mut self, name: &str, depth: usize) -> Result<(), GuestError> {
        if self.loaded.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let malformed = |reason: String| GuestError::Malformed { file: format!("module {name}"), reason };
        if depth > DEPTH_LIMIT {
            return Err(malformed("depends on itself".into()));
        }
        let &(path, packed) = self.files.get(name).ok_or_else(|| GuestError::Missing {
            what: format!("there is no module {name} (.ko, .ko.xz, .ko.gz or .ko.zst)"),
            remedy: "--modules takes a directory of the kernel's modules, as /lib/modules/VERSION".into(),
        })?;
        let unpacked = Compression::of(path).0.unpack(packed, MODULE_LIMIT);
        let bytes = unpacked.map_err(|error| malformed(format!("{path}: {error}")))?;
        let listed = self.table.as_ref().and_then(|table| table.get(name).cloned());
        for need in listed.unwrap_or_else(|| declared_dependencies(&bytes)) {
            self.add(&need, depth + 1)?;
        }
        self.loaded.push(KernelModule { name: name.to_owned(), bytes });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        format!("\x7fELF\0license=GPL\0depends={depends}\0retpoline=Y\0").into_bytes()
    }

    fn files() -> BTreeMap<String, Vec<u8>> {
        BTreeMap::from([
            ("lib/modules/6.1/kernel/arch/x86/kvm/kvm-intel.ko".to_owned(), module("kvm")),
            ("lib/modules/6.1/kernel/arch/x86/kvm/kvm.ko".to_owned(), module("irqbypass")),
            ("lib/modules/6.1/kernel/virt/lib/irqbypass.ko".to_owned(), module("")),
        ])
    }

    fn names(modules: &[KernelModule]) -> Vec<&str> {
        modules.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn order_from_the_modules_themselves() {
        let order = load_order(&files(), None).unwrap();
        assert_eq!(names(&order), ["irqbypass", "kvm", "kvm_intel"]);
    }

    #[test]
    fn order_from_modules_dep() {
        let dep = "kernel/virt/lib/irqbypass.ko:\n\
            kernel/arch/x86/kvm/kvm.ko: kernel/virt/lib/irqbypass.ko\n\
            kernel/arch/x86/kvm/kvm-intel.ko.xz: kernel/arch/x86/kvm/kvm.ko kernel/virt/lib/irqbypass.ko\n";
        let bare = files().into_keys().map(|path| (path, b"no modinfo".to_vec())).collect();
        assert_eq!(names(&load_order(&bare, Some(dep)).unwrap()), ["irqbypass", "kvm", "kvm_intel"]);
    }

    #[test]
    fn compressed_modules_are_unpacked() {
        use std::io::Write;
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&module("")).unwrap();
        let files = BTreeMap::from([("m/kvm-intel.ko.xz".to_owned(), xz.finish().unwrap())]);
        assert_eq!(load_order(&files, None).unwrap()[0].bytes, module(""));
    }

    #[test]
    fn a_missing_module_is_named() {
        let mut files = files();
        files.remove("lib/modules/6.1/kernel/virt/lib/irqbypass.ko");
        assert!(load_order(&files, None).unwrap_err().to_string().contains("no module irqbypass"));
    }

    #[test]
    fn a_loop_ends() {
        let files = BTreeMap::from([
            ("kvm-intel.ko".to_owned(), module("kvm")),
            ("kvm.ko".to_owned(), module("kvm-intel")),
        ]);
        assert!(load_order(&files, None).unwrap_err().to_string().contains("depends on itself"));
    }
}
