import { defineConfig } from "vite";

// Shared memory, hence threads, needs a page that is isolated from other origins.
export const isolation = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

// The mode `test` also builds the page that the browser tests drive.
export default defineConfig(({ mode }) => ({
  base: "./",
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", "module", "browser", "production"] },
  server: { headers: isolation },
  preview: { headers: isolation },
  worker: { format: "es" as const },
  build: {
    target: "es2023",
    outDir: mode === "test" ? "dist-test" : "dist",
    modulePreload: false,
    rolldownOptions: { input: mode === "test" ? ["index.html", "tests/browser/kernel.html"] : ["index.html"] },
  },
}));
