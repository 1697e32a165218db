//! The jars of a product: named in a pom, fetched once with Maven, found again by every later start.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};
use crate::progress::{Event, Observer};
use crate::spawner::{self, bound_command};

/// A server that comes as jars from Maven Central.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Product {
    /// Its name, also that of its folder in the cache.
    pub(crate) name: &'static str,
    /// The Maven project whose dependencies are its jars.
    pom: &'static str,
}

/// Release of Kafka and MirrorMaker 2 that the stack runs.
pub const KAFKA_VERSION: &str = "4.3.1";
/// Release of Cassandra that the stack runs.
pub const CASSANDRA_VERSION: &str = "5.0.6";

/// Kafka with MirrorMaker 2.
pub(crate) const KAFKA: Product = Product { name: "kafka", pom: include_str!("../jars/kafka/pom.xml") };
/// Cassandra.
pub(crate) const CASSANDRA: Product = Product { name: "cassandra", pom: include_str!("../jars/cassandra/pom.xml") };

impl Product {
    /// The folder with the product's jars; fetches them the first time. Blocking.
    ///
    /// The folder's name carries a hash of the pom and appears by renaming, so neither an interrupted download nor an older
    /// pom's is ever taken for it. Processes that need it at the same time wait for the one that fetches.
    pub(crate) fn jars(self, observer: &Observer) -> Result<PathBuf> {
        let parent = cache_dir().join("jars");
        let dir = parent.join(self.folder_name());
        if dir.exists() {
            return Ok(dir);
        }
        fs::create_dir_all(&parent).map_err(Error::io(&parent))?;
        let _lock = lock(&parent.join(format!("{}.lock", self.name)))?;
        if !dir.exists() {
            let unfinished = parent.join(format!("{}.unfinished", self.name));
            if unfinished.exists() {
                fs::remove_dir_all(&unfinished).map_err(Error::io(&unfinished))?;
            }
            self.fetch(&unfinished, observer)?;
            fs::rename(&unfinished, &dir).map_err(Error::io(&dir))?;
        }
        Ok(dir)
    }

    fn folder_name(self) -> String {
        let hash = blake3::hash(self.pom.as_bytes()).to_hex();
        format!("{}-{}", self.name, &hash[..16])
    }

    fn fetch(self, dir: &Path, observer: &Observer) -> Result<()> {
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let pom = dir.join("pom.xml");
        fs::write(&pom, self.pom).map_err(Error::io(&pom))?;
        observer.tell(&Event::Fetching { product: self.name, detail: "asking Maven Central".into() });
        let missing = || Error::MissingProgram { program: "mvn".into(), install: "apt-get install -y maven" };
        let mut command = bound_command(on_path("mvn").next().ok_or_else(missing)?);
        command
            .args(["--batch-mode", "--strict-checksums", "dependency:copy-dependencies", "-DincludeScope=runtime"])
            .arg(format!("-DoutputDirectory={}", dir.display()))
            .arg("-f")
            .arg(&pom)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut maven = spawner::spawn(command).map_err(Error::io("mvn"))?;
        let mut output = Vec::new();
        if let Some(stdout) = maven.stdout.take() {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(detail) = downloaded(&line) {
                    observer.tell(&Event::Fetching { product: self.name, detail: detail.to_owned() });
                }
                output.push(line);
            }
        }
        let status = maven.wait().map_err(Error::io("mvn"))?;
        if status.success() {
            return Ok(());
        }
        let output = output[output.len().saturating_sub(15)..].join("\n");
        Err(Error::Jars { product: self.name, output })
    }
}

/// The file's name in Maven's `[INFO] Downloaded from central: https://…/x.jar (18 kB at 75 kB/s)`.
fn downloaded(line: &str) -> Option<&str> {
    let url = line.split_once("Downloaded from ")?.1.split(' ').find(|word| word.starts_with("http"))?;
    url.rsplit('/').next()
}

/// Where jars are kept for all checkouts of this user: `$XDG_CACHE_HOME/coderelay`, else `~/.cache/coderelay`.
pub fn cache_dir() -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("coderelay")
}

/// Holds the file at `path` locked until the answer is dropped; waits for whoever else holds it.
pub(crate) fn lock(path: &Path) -> Result<Flock<File>> {
    let file = File::options().create(true).append(true).open(path).map_err(Error::io(path))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| Error::io(path)(errno.into()))
}

/// A Java 17, which is what both Cassandra 5.0 (nothing later) and Kafka 4 (nothing earlier) run on: of `JAVA_HOME`, of the
/// `PATH`, of the places where distributions put it, or the one that `infra/dev` fetches where there is none.
///
/// # Errors
/// [`Error::MissingProgram`] if there is none.
pub(crate) fn java() -> Result<PathBuf> {
    let home = std::env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin/java"));
    let installed = fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten().map(|jvm| jvm.path().join("bin/java"));
    home.into_iter().chain(on_path("java")).chain(installed).find(|java| is_java_17(java)).ok_or(
        Error::MissingProgram { program: "Java 17".into(), install: "apt-get install -y openjdk-17-jre-headless" },
    )
}

/// The files of this name in the folders of the `PATH`.
fn on_path(name: &'static str) -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.into_iter().map(move |dir| dir.join(name)).filter(|file| file.exists())
}

/// Every Java since 9 says in its `release` file what it is.
fn is_java_17(java: &Path) -> bool {
    let Ok(java) = java.canonicalize() else { return false };
    let home = java.parent().and_then(Path::parent);
    let release = home.and_then(|home| fs::read_to_string(home.join("release")).ok()).unwrap_or_default();
    release.lines().any(|line| line.starts_with("JAVA_VERSION=\"17"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_poms_name_the_releases() {
        for (product, artifact, version) in
            [(KAFKA, "kafka_2.13", KAFKA_VERSION), (CASSANDRA, "cassandra-all", CASSANDRA_VERSION)]
        {
            let named = format!("<artifactId>{artifact}</artifactId><version>{version}</version>");
            assert!(product.pom.contains(&named), "{artifact} {version}");
        }
    }

    #[test]
    fn mavens_lines_are_read() {
        let line =
            "[INFO] Downloaded from central: https://repo.maven.apache.org/maven2/a/b/1/b-1.jar (18 kB at 75 kB/s)";
        assert_eq!(downloaded(line), Some("b-1.jar"));
        assert_eq!(downloaded("[INFO] BUILD SUCCESS"), None);
    }

    #[test]
    fn products_have_folders_of_their_own() {
        assert_ne!(KAFKA.folder_name(), CASSANDRA.folder_name());
    }
}
