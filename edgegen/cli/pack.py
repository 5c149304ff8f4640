"""`edgegen pack BUILD --keys KEYS`: a verified artifact becomes a signed bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgegen.cli import options
from edgegen.cli.render import write_json
from edgegen.errors import ConfigError


def pack(
    build: Annotated[
        str,
        typer.Argument(
            help="What `edgegen compress` wrote; with --replace or --adapter, a bundle.", show_default=False
        ),
    ],
    keys: Annotated[
        str | None, typer.Option("--keys", "-k", help="Folder of keys (edgegen keys init); without: not signed.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder for the bundle; else bundles/NAME-VERSION.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Of the product; else the model's.")] = "",
    version: Annotated[
        str, typer.Option("--version", help="Semantic version; else one minor step after the newest, or 1.0.0.")
    ] = "",
    epoch: Annotated[
        int | None, typer.Option("--epoch", help="Devices refuse a lower one than they confirmed; else as before.")
    ] = None,
    target: Annotated[
        str, typer.Option("--target", "-t", help="Which of several compared targets; else the recommended one.")
    ] = "",
    runtime: options.Runtime = "",
    replace: Annotated[
        list[str] | None,
        typer.Option("--replace", help="PATH=FILE: a light release that changes this file; may be repeated."),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="LoRA file (GGUF): a light release that lays it over the weights.")
    ] = None,
    dev: Annotated[bool, typer.Option("--dev", help="Sign for developers' devices only.")] = False,
    arch: Annotated[
        list[str] | None, typer.Option("--arch", help="Processor that may take it, like aarch64; may be repeated.")
    ] = None,
    license: Annotated[str, typer.Option("--license", help="SPDX expression, like Apache-2.0.")] = "",
    key: Annotated[
        list[str] | None, typer.Option("--key", help="A private key that lies elsewhere; may be repeated.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Pack a finished, passing output into a bundle, with golden answers from its runtime, and sign it.

    Exit codes: 0 packed, 5 the artifact did not pass its verification, 6 a key is missing.
    """
    from edgegen.sdk.release import pack_bundle

    release = pack_bundle(
        build,
        keys=keys,
        out=out,
        name=name,
        version=version,
        epoch=epoch,
        target=target,
        runtime=runtime,
        replace=dict(_pair(item) for item in replace) if replace else None,
        adapter=adapter,
        role="dev" if dev else "release",
        arch=tuple(arch or ()),
        license=license,
        more_keys=tuple(Path(path) for path in key or ()),
    )
    for note in release.notes:
        sys.stderr.write(f"! {note}\n")
    if json:
        write_json({"folder": str(release.folder), "bundle": release.bundle, "transfer": release.transfer})
        return
    from edgegen.common.units import format_bytes

    manifest, about = release.manifest, release.bundle
    lines = [
        f"{manifest.name} {manifest.version}  {manifest.target}, {format_bytes(manifest.install_bytes)}, "
        f"{len(manifest.golden)} golden prompts, epoch {manifest.epoch}",
        f"digest    {about.digest}",
    ]
    if manifest.provenance is not None and manifest.provenance.prompt:
        lines.append(f"prompt    {manifest.provenance.prompt}")
    if release.transfer is not None:
        lines.append(
            f"update    {format_bytes(release.transfer.fetched)} to transfer from {release.previous}, "
            f"{format_bytes(release.transfer.reused)} are there already"
        )
    state = "signed" if about.signed else "waits for more signatures" if keys else "not signed"
    lines.append(f"bundle    {release.folder}/  ({state})")
    if not about.signed:
        lines.append(f"next      edgegen keys sign {keys or 'KEYS'} --bundle {release.folder}")
    else:
        lines.append(
            f"next      edgegen deploy {release.folder} --to ssh://USER@HOST    (or --fleet SITE --group GROUP)"
        )
    sys.stdout.write("\n".join(lines) + "\n")


def _pair(text: str) -> tuple[str, str]:
    path, equals, file = text.partition("=")
    if not (path and equals and file):
        raise ConfigError(f"--replace {text!r} is not PATH=FILE", hint="Like chat_template.jinja=new.jinja.")
    return path, file
