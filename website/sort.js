// A click on the head of a column sorts a table of methods by it, and a second one the other way.
// Empty cells come last.
document.addEventListener('DOMContentLoaded', () => {
  for (const head of document.querySelectorAll('.methods th')) {
    head.tabIndex = 0;
    head.title = 'Sort by this column';
    const sort = () => {
      const up = head.getAttribute('aria-sort') !== 'ascending';
      for (const other of head.parentElement.cells) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const body = head.closest('table').tBodies[0];
      const text = (row) => row.cells[head.cellIndex].textContent.trim();
      const compare = (a, b) => {
        const [one, two] = [text(a), text(b)];
        if (!one || !two) return (one ? 0 : 1) - (two ? 0 : 1);
        const found = one.localeCompare(two, 'en', { numeric: true });
        return up ? found : -found;
      };
      body.append(...[...body.rows].sort(compare));
    };
    head.addEventListener('click', sort);
    head.addEventListener('keydown', (event) => event.key === 'Enter' && sort());
  }
});
