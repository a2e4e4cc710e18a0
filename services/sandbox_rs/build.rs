//! Compiles the contracts of `proto/troupe/v1` that this service speaks, without a `protoc` binary.

use std::env;
use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let proto_root = manifest.join("../../proto");
    println!("cargo:rerun-if-changed={}", proto_root.join("troupe/v1").display());
    let descriptors = protox::compile(["troupe/v1/sandbox.proto"], [&proto_root])?;
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(false)
        .codec_path("crate::server::codec::RequestCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
