// Chromium without a window: the one that is installed, never one that a test tool fetches.

import { existsSync } from "node:fs";
import { type Browser, chromium } from "playwright-core";

const PLACES = [
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
  "/usr/bin/google-chrome-stable",
];

/** The browser's file, or nothing where there is none; `CHROMIUM` names another. */
export function installed(): string | undefined {
  return [process.env.CHROMIUM ?? "", ...PLACES].find((path) => existsSync(path));
}

/** Start it; its GPU is a software one, slow but right. */
export async function start(): Promise<Browser> {
  const executablePath = installed();
  if (!executablePath) throw new Error("there is no Chromium; install one, or name it in CHROMIUM");
  return chromium.launch({
    executablePath,
    args: [
      "--no-sandbox",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      "--enable-unsafe-webgpu",
      "--use-webgpu-adapter=swiftshader",
      "--enable-unsafe-swiftshader",
      "--js-flags=--expose-gc",
    ],
  });
}
