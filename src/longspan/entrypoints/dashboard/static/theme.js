// Before anything is drawn: light or dark, as was chosen, else as the system has it.
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("longspan-theme"); } catch { /* storage may be forbidden */ }
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
