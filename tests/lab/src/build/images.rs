//! The images a lab's pods run, under the very names the charts and containerd ask for.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::cache::{Cache, Key};
use super::components::{CLUSTER_GATEWAY, COREDNS, KUBEVELA, PAUSE};
use super::oci::{self, Entry, ImageSpec};
use super::packages::STREAM_MODULE;
use super::{Image, host};
use crate::progress::Progress;

/// Counted up when [`oci`] writes other bytes for the same spec.
const FORMAT: u8 = 1;

/// The image of one static binary, which it runs.
pub fn of_binary(name: &str, path: &str, binary: &Path) -> ImageSpec {
    ImageSpec {
        name: name.to_owned(),
        entries: vec![Entry::program(path, binary), Entry::directory("/tmp", 0o1777)],
        entrypoint: vec![path.to_owned()],
        ..ImageSpec::default()
    }
}

/// The name containerd knows the pause image by.
pub fn pause() -> String {
    format!("registry.k8s.io/pause:{}", PAUSE.version)
}

/// The name in KubeVela's chart.
pub fn vela_core() -> String {
    format!("docker.io/oamdev/vela-core:{}", KUBEVELA.version)
}

/// The name in KubeVela's chart.
pub fn cluster_gateway() -> String {
    format!("docker.io/oamdev/cluster-gateway:{}", CLUSTER_GATEWAY.version)
}

/// The name kubeadm deploys.
pub fn coredns() -> String {
    format!("registry.k8s.io/coredns/coredns:{}", COREDNS.version)
}

/// This machine's nginx with its stream module, laid out like the stock image: `nginx` on PATH, a web server when run
/// as it is (on port 8080, as any user).
pub fn nginx() -> Result<ImageSpec> {
    let binary = host::find("nginx", &host::search_path()).context("there is no nginx command")?;
    nginx_of(&binary, Some(Path::new(STREAM_MODULE)))
}

/// An nginx, laid out like the stock image, with its stream module where that is a file.
pub fn nginx_of(binary: &Path, module: Option<&Path>) -> Result<ImageSpec> {
    let version = nginx_version(&output(Command::new(binary).arg("-v"))?)?.to_owned();
    let mut entries = vec![
        Entry::program("/usr/sbin/nginx", binary),
        Entry::text("/etc/nginx/nginx.conf", include_str!("nginx.conf")),
        // nginx started as root becomes nobody, whom it looks up here; its group is nogroup on Debian.
        Entry::text("/etc/passwd", "root:x:0:0:root:/:/\nnobody:x:65534:65534:nobody:/:/\n"),
        Entry::text("/etc/group", "root:x:0:\nnogroup:x:65534:\nnobody:x:65534:\n"),
        // Where nginx of Debian writes unless told otherwise, as it is without a volume there: root's.
        Entry::directory("/var/log/nginx", 0o755),
        Entry::directory("/var/lib/nginx", 0o755),
        Entry::directory("/run", 0o755),
        Entry::directory("/tmp", 0o1777),
    ];
    entries.extend(module.map(|module| Entry::program(STREAM_MODULE, module)));
    for library in libraries(&output(Command::new("ldd").arg(binary).args(module))?)? {
        entries.push(Entry::program(&library.display().to_string(), &library));
    }
    Ok(ImageSpec {
        name: format!("docker.io/lab/nginx:{version}"),
        entries,
        command: ["nginx", "-g", "daemon off;"].map(str::to_owned).to_vec(),
        environment: vec!["PATH=/usr/sbin:/usr/bin".to_owned()],
        ..ImageSpec::default()
    })
}

/// The archive of `spec` in the cache, made when it isn't there.
pub fn ensure(spec: &ImageSpec, cache: &Cache, progress: &Progress) -> Result<Image> {
    let file = spec.name.rsplit('/').next().unwrap_or(&spec.name).replace(':', "-");
    let archive = cache.entry(&format!("images/{file}-{}.tar", key(spec)?), |out| {
        progress.step(&format!("making the image {}", spec.name));
        oci::image(spec, out)
    })?;
    Ok(Image { name: spec.name.clone(), archive })
}

/// What the archive is made from. A source file counts by its path, size and time of change, which is much faster than
/// reading it and as good: cache entries never change, and Debian's packages set the time.
fn key(spec: &ImageSpec) -> Result<String> {
    let mut key = Key::default().with([FORMAT]).with(format!("{spec:?}"));
    for source in spec.entries.iter().filter_map(Entry::source) {
        let file = fs::metadata(source).with_context(|| format!("can't look at {}", source.display()))?;
        key = key.with(file.len().to_le_bytes()).with(file.mtime().to_le_bytes()).with(file.mtime_nsec().to_le_bytes());
    }
    Ok(key.finish())
}

/// `1.22.1`, of `nginx version: nginx/1.22.1 (Debian)`.
fn nginx_version(said: &str) -> Result<&str> {
    let version = said.split_once("nginx/").map(|(_, rest)| rest.split_whitespace().next().unwrap_or_default());
    version.filter(|version| !version.is_empty()).with_context(|| format!("nginx -v says no version: {}", said.trim()))
}

/// The files `ldd` names, each once, where the loader looks for them.
fn libraries(said: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for line in said.lines().filter(|line| line.starts_with(char::is_whitespace)) {
        let library = line.trim();
        if library.ends_with("not found") {
            bail!("nginx lacks a library: {library}");
        }
        let file = library.split_once("=> ").map_or(library, |(_, file)| file).split(" (").next().unwrap_or_default();
        // The kernel's own (linux-vdso) is no file.
        if file.starts_with('/') {
            files.push(PathBuf::from(file));
        }
    }
    files.sort();
    files.dedup();
    Ok(files)
}

/// What a command says, on stdout or stderr (where nginx prints its version).
fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let output = command.output().with_context(|| format!("can't run {}", program.display()))?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{} failed ({}): {}", program.display(), output.status, said.trim());
    Ok(said)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn images_have_the_names_others_ask_for() {
        assert_eq!(pause(), "registry.k8s.io/pause:3.10");
        assert_eq!(vela_core(), "docker.io/oamdev/vela-core:v1.10.9");
        assert_eq!(cluster_gateway(), "docker.io/oamdev/cluster-gateway:v1.9.0-alpha.2");
        assert_eq!(coredns(), "registry.k8s.io/coredns/coredns:v1.12.4");
    }

    #[test]
    fn ldd_names_libraries() {
        let said = "/usr/sbin/nginx:\n\tlinux-vdso.so.1 (0x00007f)\n\tlibz.so.1 => /lib/libz.so.1 (0x00007f)\n\
                    \t/lib64/ld.so.2 (0x00007f)\n/m.so:\n\tlibz.so.1 => /lib/libz.so.1 (0x00007f)\n";
        assert_eq!(libraries(said).unwrap(), [Path::new("/lib/libz.so.1"), Path::new("/lib64/ld.so.2")]);
        let error = libraries("x:\n\tliby.so => not found\n").unwrap_err().to_string();
        assert_eq!(error, "nginx lacks a library: liby.so => not found");
    }

    #[test]
    fn nginx_says_its_version() {
        assert_eq!(nginx_version("nginx version: nginx/1.22.1\n").unwrap(), "1.22.1");
        assert_eq!(nginx_version("nginx version: nginx/1.26.3 (Debian)\n").unwrap(), "1.26.3");
        assert!(nginx_version("what?").unwrap_err().to_string().ends_with("what?"));
    }

    #[test]
    fn the_key_follows_the_spec_and_its_sources() {
        let directory = tempfile::tempdir().unwrap();
        let binary = directory.path().join("b");
        fs::write(&binary, "one").unwrap();
        let spec = of_binary("x:1", "/b", &binary);
        let first = key(&spec).unwrap();
        assert_eq!(first, key(&spec.clone()).unwrap());
        assert_ne!(first, key(&ImageSpec { user: "1".into(), ..spec.clone() }).unwrap());
        fs::write(&binary, "longer").unwrap();
        assert_ne!(first, key(&spec).unwrap());
    }
}
