// The pages about runs: which module shows the page at hand. A view is a module with `title` and `show(main)`.

import { askForKey, report } from "/web/server.js";

askForKey();
try {
  const view = await import(`/web/view_${location.pathname.slice(1)}.js`);
  document.title = `${view.title} – Alpha`;
  await view.show(document.getElementById("view"));
} catch (error) {
  report(error);
}
