//! Debian's packages by apt's own tools, with a state of our own: no root is needed, the host's state is not touched and
//! its hooks do not run; its sources, keys and proxies are used where the host is the same Debian.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, unbounded};

use super::cache::Fetched;
use super::deb::{self, Files};
use super::progress::Progress;
use super::{GuestError, kernel_module};
use crate::config::Stop;

/// The packages asked for. The first depends on the package of the newest kernel.
const KERNEL_METAPACKAGE: &str = "linux-image-cloud-amd64";
const KERNEL_PREFIX: &str = "linux-image-";
const BUSYBOX: &str = "busybox-static";
/// The Debian whose kernel is used: its identification in os-release(5), and its name in the archive.
const DEBIAN: (&str, &str) = ("debian", "12");
const SUITE: &str = "bookworm";
/// The archive's keys for that Debian, for hosts that are another system.
const KEYS: &[u8] = include_bytes!("keys/debian-archive-bookworm.asc");
const POLL: Duration = Duration::from_millis(50);
/// So much of apt's output is kept for an error message.
const OUTPUT_LIMIT: u64 = 64 << 10;
/// The host's settings that say how to reach an archive.
const TRANSPORT: &[&str] =
    &["Acquire::http::", "Acquire::https::", "Acquire::Retries", "Acquire::ForceIPv", "Acquire::tor::"];

/// Fetches the parts of the ready-made guest with the help of the empty directory `scratch`.
///
/// # Errors
/// No apt, or what it said; what the packages lack; the user's wish to end.
pub fn fetch(scratch: &Path, stop: &Stop) -> Result<Fetched, GuestError> {
    let apt = Apt { scratch, stop, progress: Progress::new() };
    apt.prepare()?;
    apt.progress.step("fetching Debian's package lists");
    let updated = apt.run("apt-get", &["update", "-qq", "-o", "APT::Status-Fd=1"], scratch);
    let (kernel, busybox) = match (apt.packages(), updated) {
        // One of the host's sources may be out of order: that matters if the packages are not in the others.
        (Err(_), Err(update)) => return Err(update),
        (packages, _) => packages?,
    };
    let downloads = scratch.join("packages");
    fs::create_dir(&downloads).map_err(GuestError::file("cannot create", &downloads))?;
    apt.progress.step(&format!("downloading {} and {}", kernel.name, busybox.name));
    let wanted = [kernel.exact(), busybox.exact()];
    apt.run("apt-get", &["download", "-qq", "-o", "APT::Status-Fd=1", &wanted[0], &wanted[1]], &downloads)?;
    apt.progress.step("unpacking");
    let mut unpacked = unpack(&downloads)?;
    fetched(&kernel, &busybox, &mut unpacked)
}

/// A package and the version that apt would install.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Package {
    name: String,
    version: String,
    depends: Vec<String>,
}

impl Package {
    fn exact(&self) -> String {
        format!("{}={}", self.name, self.version)
    }

    /// From the first paragraph that `apt-cache show` prints.
    fn parse(paragraph: &str) -> Option<Self> {
        let lines = || paragraph.lines().take_while(|line| !line.is_empty());
        let field = |name: &str| lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let depends = field("Depends").unwrap_or_default().split([',', '|']);
        Some(Self {
            name: field("Package")?.to_owned(),
            version: field("Version")?.to_owned(),
            depends: depends.filter_map(|one| Some(one.split_whitespace().next()?.to_owned())).collect(),
        })
    }
}

struct Apt<'a> {
    scratch: &'a Path,
    stop: &'a Stop,
    progress: Progress,
}

impl Apt<'_> {
    /// Lays out the private state and writes the configuration that points to it.
    fn prepare(&self) -> Result<(), GuestError> {
        for directory in ["state/lists/partial", "cache/archives/partial", "sources", "none"] {
            let path = self.scratch.join(directory);
            fs::create_dir_all(&path).map_err(GuestError::file("cannot create", &path))?;
        }
        self.write("state/status", b"")?;
        self.write("archive-keys.asc", KEYS)?;
        let of_host = self.run("apt-config", &["dump"], self.scratch);
        let transport = transport_settings(&of_host?);
        let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let sources = if is_debian_12(&os_release) { String::new() } else { self.own_sources()? };
        self.write("apt.conf", (configuration(self.scratch)? + &sources + &transport).as_bytes())
    }

    /// A source for Debian, and the settings that make it the only one.
    fn own_sources(&self) -> Result<String, GuestError> {
        self.write(
            "sources/debian.sources",
            debian_sources(&self.scratch.join("archive-keys.asc")).as_bytes(),
        )?;
        let at = self.scratch.display();
        Ok(format!(
            "Dir::Etc::sourcelist \"/dev/null\";\nDir::Etc::sourceparts \"{at}/sources\";\n\
             Dir::Etc::trusted \"/dev/null\";\nDir::Etc::trustedparts \"{at}/none\";\n"
        ))
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), GuestError> {
        let path = self.scratch.join(name);
        fs::write(&path, content).map_err(GuestError::file("cannot write", &path))
    }

    /// The kernel's package and busybox's.
    fn packages(&self) -> Result<(Package, Package), GuestError> {
        Ok((self.kernel_package()?, self.package(BUSYBOX)?))
    }

    fn kernel_package(&self) -> Result<Package, GuestError> {
        let metapackage = self.package(KERNEL_METAPACKAGE)?;
        let kernel = metapackage.depends.iter().find(|name| name.starts_with(KERNEL_PREFIX));
        self.package(kernel.ok_or_else(|| GuestError::Malformed {
            file: format!("package {}", metapackage.exact()),
            reason: "it depends on no kernel".into(),
        })?)
    }

    fn package(&self, name: &str) -> Result<Package, GuestError> {
        let shown = self.run("apt-cache", &["show", "--no-all-versions", name], self.scratch)?;
        Package::parse(&shown).ok_or_else(|| GuestError::Missing {
            what: format!("this host's apt sources have no package {name}"),
            remedy: "pass --kernel, --modules and --busybox".into(),
        })
    }

    /// Runs one of apt's tools and returns what it printed. The host's configuration is not read: the private one says
    /// so where it can, and until it is written the tool only prints the host's.
    fn run(&self, tool: &str, arguments: &[&str], directory: &Path) -> Result<String, GuestError> {
        let mut command = Command::new(tool);
        command.args(arguments).current_dir(directory).env("LC_ALL", "C.UTF-8");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let configuration = self.scratch.join("apt.conf");
        if configuration.exists() {
            command.env("APT_CONFIG", configuration);
        }
        let child = command.spawn().map_err(|error| no_apt(tool, error))?;
        let (status, output, errors) = self.attend(child)?;
        if status.success() {
            return Ok(output);
        }
        let command = format!("{tool} {}", arguments.join(" "));
        Err(GuestError::Apt { command, status: status.to_string(), output: errors + &output })
    }

    /// Follows the tool's output until it ends, or ends it at the user's wish.
    fn attend(&self, mut child: Child) -> Result<(std::process::ExitStatus, String, String), GuestError> {
        let failed = |error| GuestError::file("cannot run apt in", self.scratch)(error);
        let errors = child.stderr.take().map(|pipe| std::thread::spawn(move || text(pipe)));
        let lines = child.stdout.take().map(lines).expect("stdout is a pipe");
        let mut output = String::new();
        loop {
            match lines.recv_timeout(POLL) {
                Ok(line) => self.take(&line, &mut output),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.stop.requested().is_some() {
                // It may have ended already: then there is nothing to kill.
                let _ = child.kill();
                child.wait().map_err(failed)?;
                return Err(GuestError::Interrupted);
            }
        }
        let status = child.wait().map_err(failed)?;
        if self.stop.requested().is_some() {
            return Err(GuestError::Interrupted);
        }
        let errors = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
        Ok((status, output, errors))
    }

    fn take(&self, line: &str, output: &mut String) {
        if let Some(percent) = progress_of(line) {
            self.progress.percent(percent);
        } else {
            output.push_str(line);
            output.push('\n');
        }
    }
}

/// `dlstatus:N:PERCENT:TEXT`, as apt's Status-Fd prints while it fetches. apt's doc/progress-reporting.
fn progress_of(line: &str) -> Option<f64> {
    line.strip_prefix("dlstatus:")?.split(':').nth(1)?.parse().ok()
}

fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = unbounded();
    std::thread::spawn(move || {
        let lines = BufReader::new(pipe).lines().map_while(Result::ok);
        let _ = lines.into_iter().try_for_each(|line| sender.send(line));
    });
    receiver
}

fn text(mut pipe: impl Read) -> String {
    let mut kept = Vec::new();
    // What cannot be read is not shown; beyond the limit the rest is drained, so that the tool does not block.
    let _ = pipe.by_ref().take(OUTPUT_LIMIT).read_to_end(&mut kept);
    let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    String::from_utf8_lossy(&kept).into_owned()
}

fn no_apt(tool: &str, error: std::io::Error) -> GuestError {
    if error.kind() != ErrorKind::NotFound {
        return GuestError::file("cannot run", Path::new(tool))(error);
    }
    GuestError::Missing {
        what: format!("the ready-made guest comes from Debian by apt, and this host has no {tool}"),
        remedy: "pass --kernel with a Linux bzImage, --modules with the directory of its modules \
                 (kvm-intel.ko, kvm.ko, irqbypass.ko) and --busybox with a static busybox"
            .into(),
    }
}

/// The private state, without the host's configuration files and hooks.
fn configuration(scratch: &Path) -> Result<String, GuestError> {
    let at = scratch.to_str().filter(|path| !path.contains(['"', '\n', ';', '\\']));
    let at = at.ok_or_else(|| GuestError::Missing {
        what: format!("apt cannot use the directory {}", scratch.display()),
        remedy: "set XDG_CACHE_HOME to a directory with a plainer name".into(),
    })?;
    Ok(format!(
        "Dir::State \"{at}/state\";\nDir::State::status \"{at}/state/status\";\nDir::Cache \"{at}/cache\";\n\
         Dir::Etc::main \"/dev/null\";\nDir::Etc::parts \"/dev/null\";\n\
         Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"{at}/none\";\n\
         APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
         APT::Sandbox::User \"root\";\nAPT::Get::AllowUnauthenticated \"false\";\n\
         APT::Update::Error-Mode \"any\";\n\
         Acquire::Languages \"none\";\nAcquire::GzipIndexes \"true\";\n"
    ))
}

/// The lines of `apt-config dump` that say how to reach an archive: proxies, retries.
fn transport_settings(dump: &str) -> String {
    let kept = dump.lines().filter(|line| TRANSPORT.iter().any(|prefix| line.starts_with(prefix)));
    kept.map(|line| format!("{line}\n")).collect()
}

fn is_debian_12(os_release: &str) -> bool {
    let value = |key: &str| {
        let mut values = os_release.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        values.next().unwrap_or_default().trim_matches(['"', '\''])
    };
    (value("ID"), value("VERSION_ID")) == DEBIAN
}

/// Debian's archive and its security updates, in the format of sources.list(5).
fn debian_sources(keys: &Path) -> String {
    let source = |archive: &str, suites: &str| {
        format!(
            "Types: deb\nURIs: http://deb.debian.org/{archive}\nSuites: {suites}\nComponents: main\n\
             Architectures: amd64\nSigned-By: {}\n\n",
            keys.display()
        )
    };
    source("debian", &format!("{SUITE} {SUITE}-updates"))
        + &source("debian-security", &format!("{SUITE}-security"))
}

/// The wanted files of all packages in `downloads`.
fn unpack(downloads: &Path) -> Result<Files, GuestError> {
    let list = |error| GuestError::file("cannot list", downloads)(error);
    let mut found = Files::new();
    for entry in fs::read_dir(downloads).map_err(list)? {
        let path = entry.map_err(list)?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            found.extend(unpack_one(&path)?);
        }
    }
    Ok(found)
}

fn unpack_one(path: &Path) -> Result<Files, GuestError> {
    let file = fs::File::open(path).map_err(GuestError::file("cannot open", path))?;
    deb::files(BufReader::new(file), is_wanted).map_err(GuestError::file("cannot unpack", path))
}

fn is_wanted(path: &str) -> bool {
    path.starts_with("boot/vmlinuz-")
        || is_busybox(path)
        || path.ends_with("/modules.dep")
        || kernel_module::may_be_needed(path)
}

fn is_busybox(path: &str) -> bool {
    matches!(path, "bin/busybox" | "usr/bin/busybox")
}

fn fetched(kernel: &Package, busybox: &Package, files: &mut Files) -> Result<Fetched, GuestError> {
    let dep = files.iter().find(|(path, _)| path.ends_with("/modules.dep"));
    let dep = dep.map(|(_, text)| String::from_utf8_lossy(text).into_owned());
    let modules = kernel_module::load_order(files, dep.as_deref())?;
    Ok(Fetched {
        packages: vec![kernel.exact(), busybox.exact()],
        kernel: take(files, kernel, |path| path.starts_with("boot/vmlinuz-"))?,
        busybox: take(files, busybox, is_busybox)?,
        modules,
    })
}

fn take(files: &mut Files, package: &Package, is: impl Fn(&str) -> bool) -> Result<Vec<u8>, GuestError> {
    let path = files.keys().find(|path| is(path)).cloned();
    path.and_then(|path| files.remove(&path)).ok_or_else(|| GuestError::Malformed {
        file: format!("package {}", package.exact()),
        reason: "it lacks the file that is needed".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paragraph_names_version_and_dependencies() {
        let text = "Package: linux-image-cloud-amd64\nSource: linux-signed-amd64 (6.1.192+2)\nVersion: 6.1.192-2\n\
            Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), other | third\n\nPackage: next\nVersion: 1\n";
        let package = Package::parse(text).unwrap();
        assert_eq!(package.exact(), "linux-image-cloud-amd64=6.1.192-2");
        assert_eq!(package.depends, ["linux-image-6.1.0-56-cloud-amd64", "other", "third"]);
        assert_eq!(Package::parse(""), None);
    }

    #[test]
    fn only_debian_12_lends_its_sources() {
        assert!(is_debian_12(
            "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n"
        ));
        assert!(!is_debian_12("ID=debian\nVERSION_ID=\"13\"\n"));
        assert!(!is_debian_12("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"12\"\n"));
        assert!(!is_debian_12(""));
    }

    #[test]
    fn proxies_are_kept_and_hooks_are_not() {
        let dump = "APT::Update::Post-Invoke:: \"rm -f x\";\nAcquire::http::Proxy \"http://127.0.0.1:3142\";\n\
            Acquire::Retries \"3\";\nDir::State \"var/lib/apt\";\n";
        let kept = "Acquire::http::Proxy \"http://127.0.0.1:3142\";\nAcquire::Retries \"3\";\n";
        assert_eq!(transport_settings(dump), kept);
    }

    #[test]
    fn a_path_that_apt_would_misread_is_refused() {
        assert!(configuration(Path::new("/tmp/a\"b")).is_err());
        assert!(configuration(Path::new("/tmp/plain")).unwrap().contains("Dir::State \"/tmp/plain/state\""));
    }

    #[test]
    fn progress_lines_are_told_from_output() {
        assert_eq!(progress_of("dlstatus:1:33.5:Retrieving file 1 of 2"), Some(33.5));
        assert_eq!(progress_of("Package: x"), None);
    }

    #[test]
    fn the_embedded_keys_are_armoured() {
        let text = std::str::from_utf8(KEYS).unwrap();
        assert_eq!(text.matches("-----BEGIN PGP PUBLIC KEY BLOCK-----").count(), 3);
    }

    #[test]
    fn a_host_without_apt_is_told_what_to_pass() {
        let error = no_apt("apt-get", ErrorKind::NotFound.into()).to_string();
        assert!(error.contains("--kernel") && error.contains("--modules"), "{error}");
    }

    #[test]
    fn a_failing_tool_shows_what_it_said() {
        let scratch = tempfile::tempdir().unwrap();
        let stop = Stop::default();
        let apt = Apt { scratch: scratch.path(), stop: &stop, progress: Progress::new() };
        let error = apt.run("sh", &["-c", "echo wrong >&2; exit 100"], scratch.path()).unwrap_err();
        assert!(error.to_string().contains("wrong"), "{error}");
    }

    #[test]
    fn a_running_tool_ends_at_the_users_wish() {
        let scratch = tempfile::tempdir().unwrap();
        let stop = Stop::default();
        stop.request(crate::config::StopReason::User);
        let apt = Apt { scratch: scratch.path(), stop: &stop, progress: Progress::new() };
        let ended = apt.run("sleep", &["600"], scratch.path());
        assert!(matches!(ended, Err(GuestError::Interrupted)));
    }
}
