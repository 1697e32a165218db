//! Compiles the `.proto` files with protox, so that building needs no `protoc`.

use std::error::Error;
use std::path::PathBuf;

/// What the services speak. The error details are not imported by these files, but travel inside `google.rpc.Status`:
/// reflection clients and readers of the descriptor set need them to unpack errors.
const PROTOS: [&str; 4] = [
    "coderelay/v1/packet.proto",
    "coderelay/v1/ingest.proto",
    "google/rpc/error_details.proto",
    "google/rpc/code.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(PROTOS)?;
    std::fs::write(out.join("coderelay.v1.fds.binpb"), compiler.encode_file_descriptor_set())?;

    // Source info carries the comments into the generated code.
    compiler.include_source_info(true);
    tonic_prost_build::configure()
        .bytes(".coderelay.v1")
        .btree_map(".coderelay.v1")
        .extern_path(".google.rpc", "::tonic_types::pb")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
