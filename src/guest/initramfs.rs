//! The two initramfs of the ready-made guest: L2's, and L1's with L2's kernel and initramfs in it.

use super::cpio::Cpio;
use super::parts::Parts;

const L1_INIT: &str = include_str!("init/l1.sh");
const L2_INIT: &str = include_str!("init/l2.sh");
/// The names under which the inits call busybox.
const APPLETS: &[&str] = &["sh", "mount", "insmod", "sleep", "poweroff", "uname", "dmesg"];

/// Linux's device number of /dev/console. Linux, Documentation/admin-guide/devices.txt.
const CONSOLE: (u32, u32) = (5, 1);

/// What L1 is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipe {
    /// The loops of `testudo micro` before L2's Linux.
    pub micro: Option<Micro>,
    /// L2's RAM, as `--memory` takes it.
    pub l2_memory: String,
    /// L2's kernel command line.
    pub l2_cmdline: String,
}

/// How many turns the loops of `testudo micro` take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Micro {
    /// Of the loops of one instruction that exits.
    pub exits: u64,
    /// Of the one that touches fresh pages.
    pub pages: u64,
}

/// L1's initramfs. It is not compressed: unpacking costs the guest more instructions than reading.
#[must_use]
pub fn l1(parts: &Parts, program: &[u8], recipe: &Recipe) -> Vec<u8> {
    let mut archive = base(&parts.busybox, L1_INIT)
        .directory("sys")
        .directory("modules")
        .directory("l2")
        .file("settings", 0o644, settings(parts, recipe).as_bytes())
        .file("testudo", 0o755, program)
        .file("l2/vmlinuz", 0o644, &parts.kernel.bytes)
        .file("l2/initrd", 0o644, &base(&parts.busybox, L2_INIT).finish());
    for module in &parts.modules {
        archive = archive.file(&format!("modules/{}.ko", module.name), 0o644, &module.bytes);
    }
    archive.finish()
}

/// What both have: busybox, its names, an init, a console.
fn base(busybox: &[u8], init: &str) -> Cpio {
    let archive = Cpio::new()
        .directory("bin")
        .directory("dev")
        .directory("proc")
        .character_device("dev/console", CONSOLE.0, CONSOLE.1)
        .file("init", 0o755, init.as_bytes())
        .file("bin/busybox", 0o755, busybox);
    APPLETS.iter().fold(archive, |archive, applet| archive.symlink(&format!("bin/{applet}"), "busybox"))
}

/// The variables of L1's init.
fn settings(parts: &Parts, recipe: &Recipe) -> String {
    let modules: Vec<_> = parts.modules.iter().map(|module| module.name.as_str()).collect();
    let (exits, pages) = match recipe.micro {
        Some(micro) => (micro.exits.to_string(), micro.pages.to_string()),
        None => (String::new(), String::new()),
    };
    let rows = [
        ("MODULES", modules.join(" ")),
        ("MICRO_EXITS", exits),
        ("MICRO_PAGES", pages),
        ("L2_MEMORY", recipe.l2_memory.clone()),
        ("L2_CMDLINE", recipe.l2_cmdline.clone()),
    ];
    rows.map(|(name, value)| format!("{name}={}\n", quoted(&value))).concat()
}

/// `value` as one word of the shell.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::kernel_module::KernelModule;
    use super::*;
    use crate::config::Image;

    fn parts() -> Parts {
        let module = |name: &str| KernelModule { name: name.into(), bytes: name.as_bytes().to_vec() };
        Parts {
            kernel: Image { name: "vmlinuz".into(), bytes: Arc::new(b"KERNEL-BYTES".to_vec()) },
            modules: vec![module("irqbypass"), module("kvm"), module("kvm_intel")],
            busybox: b"BUSYBOX".to_vec(),
            origin: String::new(),
        }
    }

    fn recipe(micro: Option<Micro>) -> Recipe {
        Recipe { micro, l2_memory: "256M".into(), l2_cmdline: "console=ttyS0 it's".into() }
    }

    fn contains(archive: &[u8], what: &str) -> bool {
        archive.windows(what.len()).any(|window| window == what.as_bytes())
    }

    #[test]
    fn l1_has_all_that_it_needs() {
        let archive = l1(&parts(), b"TESTUDO", &recipe(None));
        for path in
            ["dev/console", "init", "bin/busybox", "bin/sh", "modules/kvm_intel.ko", "testudo", "l2/vmlinuz"]
        {
            assert!(contains(&archive, &format!("{path}\0")), "{path}");
        }
        assert!(contains(&archive, "MODULES='irqbypass kvm kvm_intel'"));
        assert!(contains(&archive, "testudo-milestone: l2_userspace"), "L2's init is in the nested archive");
    }

    #[test]
    fn settings_survive_the_shell() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
        let text = settings(&parts(), &recipe(Some(Micro { exits: 20_000, pages: 4096 })));
        assert!(text.contains("MICRO_EXITS='20000'\nMICRO_PAGES='4096'\n"), "{text}");
    }

    #[test]
    fn every_command_of_the_inits_is_there() {
        for word in ["mount", "insmod", "sleep", "poweroff", "uname"] {
            assert!(L1_INIT.contains(word) || L2_INIT.contains(word));
            assert!(APPLETS.contains(&word), "{word}");
        }
    }
}
