"use strict";
// Loads a page that is written again and again, keeps what a reader has unfolded, and waits while
// keys or pointer are in use. A button stops it, which a refresh by the browser itself could not.
(() => {
  const USED_SECONDS = 20, place = document.querySelector(".following"), seconds = Number(place.dataset.seconds);
  const remembered = (name) => {
    try { return sessionStorage.getItem(location.pathname + name); } catch { return null; }
  };
  const remember = (name, value) => {
    try { sessionStorage.setItem(location.pathname + name, value); } catch { /* A browser without storage forgets. */ }
  };
  let used = -Infinity, loaded = Date.now(), following = remembered("following") !== "no";
  for (const event of ["keydown", "pointerdown", "wheel"]) addEventListener(event, () => (used = Date.now()), { passive: true });

  const button = document.createElement("button"), said = document.createElement("span");
  button.type = "button";
  const tell = () => {
    said.textContent = following ? `The run goes on: this page loads itself again every ${seconds} s. ` : "This page stays as it is. ";
    button.textContent = following ? "Stop" : "Follow the run";
  };
  button.onclick = () => {
    following = !following;
    remember("following", following ? "yes" : "no");
    [loaded, used] = [Date.now(), -Infinity];
    tell();
  };
  place.append(said, button);
  tell();

  const unfolded = new Set(JSON.parse(remembered("unfolded") || "[]"));
  const folds = [...document.querySelectorAll("details")];
  for (const one of folds) one.open ||= unfolded.has(one.querySelector("summary").textContent);
  setInterval(() => {
    const now = Date.now();
    if (!following || document.hidden || now - loaded < seconds * 1000 || now - used < USED_SECONDS * 1000) return;
    remember("unfolded", JSON.stringify(folds.filter((one) => one.open).map((one) => one.querySelector("summary").textContent)));
    location.reload();
  }, 500);
})();
